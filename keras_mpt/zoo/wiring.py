"""Compare the network of a ticket with that of a function of the zoo, including layers without weights."""

from keras_mpt.tickets import TicketError


def check_wiring(model, ticket, part=False):
    """Raise TicketError unless the layers of a functional model have the same inputs as those of the ticket.

    `restore` compares layers with weights, but a function of the zoo may have got other shortcuts since.

    Args:
        model: A network of the zoo.
        ticket: A `Ticket`. One of a model that is not functional is not checked.
        part: Whether the model may lack the last layers.
    """
    if ticket.config["class_name"] != "Functional":
        return
    ours, theirs = _wiring(model.get_config()), _wiring(ticket.config["config"])
    names = ours if part else {**ours, **theirs}
    for name in names:
        if ours.get(name) != theirs.get(name):
            here, there = (_described(found.get(name)) for found in (ours, theirs))
            raise TicketError(
                f"{ticket.path}: layer {name!r} is {there} in the file, and {here} in {model.name}(). The ticket is of "
                "another network, or of another version of it: `keras_mpt.load_ticket` loads that."
            )


def _wiring(config):
    """Return class and inputs of each layer. Keras renumbers operations, so they are identified by their inputs."""
    entries = {layer["config"]["name"]: layer for layer in config["layers"]}

    def described(name):
        return entries[name]["class_name"], [known(source) for source in _sources(entries[name]["inbound_nodes"])]

    def known(name):
        if not _is_operation(entries[name]):
            return name
        what, sources = described(name)
        return f"{what}({', '.join(sources)})"

    return {name: described(name) for name, entry in entries.items() if not _is_operation(entry)}


def _is_operation(entry):
    return (entry.get("module") or "").startswith(("keras.ops", "keras.src.ops"))


def _sources(nodes):
    if isinstance(nodes, dict) and "keras_history" in nodes:
        yield nodes["keras_history"][0]
    elif isinstance(nodes, (dict, list, tuple)):
        for part in nodes.values() if isinstance(nodes, dict) else nodes:
            yield from _sources(part)


def _described(layer):
    return f"{layer[0]} of {', '.join(layer[1]) or 'nothing'}" if layer else "missing"
