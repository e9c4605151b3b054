"""What MkDocs does here besides rendering docs/: files of the repository, notebooks, and a check of the API pages.

- A page may link to a file outside docs/, such as `../zoo/README.md`, as it must to work in the repository, too. That
  file becomes a part of the site, at its path in the repository, and so does what it links to in turn.
- A notebook of docs/notebooks becomes a page, with the outputs it was saved with.
- A public name that is missing from the API pages is a warning, which `mkdocs build --strict` takes for an error.
  mkdocstrings leaves out what has no docstring. So is a quotation in an API page, which Markdown makes of a doctest
  that is neither in an `Examples:` section nor indented.
"""

import ast
import json
import logging
import os
import pathlib
import re
import zlib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOG = logging.getLogger("mkdocs.hooks.keras_mpt")
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
QUOTE = re.compile(r"<blockquote>(?:\s|<blockquote>|<p>)*([^<]*)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Add notebooks as pages, and what pages link to outside docs/."""
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook_page(path)))
        files.remove(files.get_file_from_path(f"notebooks/{path.name}"))
    pages = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    pages.append(("mkdocs.yml", "".join(f"[]({path})" for path in _leaves(config.nav))))
    while pages:
        source, text = pages.pop()
        for target in outside_docs(source, text):
            if files.get_file_from_path(target) is None:
                file = File.generated(config, target, abs_src_path=str(ROOT / target))
                files.append(file)
                pages += [(target, file.content_string)] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown, page, config, files):
    """Make the links of a page what they are in the site, where docs/ is the root."""
    uri = page.file.src_uri
    source = uri if page.file.generated_by and not uri.startswith("notebooks/") else f"docs/{uri}"

    def relinked(match):
        opening, target, closing = match.groups()
        if ":" in target:
            return match[0]
        site = re.sub(r"\.ipynb$", ".md", resolved(source, target).removeprefix("docs/"))
        return opening + os.path.relpath(site, os.path.dirname(uri) or ".") + closing

    return outside_code(markdown, lambda text: LINK.sub(relinked, text))


def on_post_build(config):
    """Compare what the API pages describe with the public names; look for examples that became quotations."""
    with open(os.path.join(config.site_dir, "objects.inv"), "rb") as file:
        for _ in range(4):  # lines of the inventory's header
            file.readline()
        described = {line.split()[0] for line in zlib.decompress(file.read()).decode().splitlines()}
    missing = [name for name in public_names() if name not in described]
    if missing:
        LOG.warning("These public names have no docstring, or no page in docs/api: %s", ", ".join(missing))
    for page in sorted(pathlib.Path(config.site_dir, "api").glob("*.html")):
        if quoted := QUOTE.findall(page.read_text(encoding="utf-8")):
            LOG.warning(
                "A docstring in %s holds a quotation: indent its examples. %s", page.name, quoted[0].strip()[:80]
            )


def _leaves(nav):
    """Yield the paths in a navigation tree."""
    for item in nav:
        for value in item.values():
            yield from [value] if isinstance(value, str) else _leaves(value)


def outside_docs(source, text):
    """Yield the files outside docs/ that a page of the repository links to."""
    for _, target, _ in LINK.findall(CODE.sub("", text)):
        path = resolved(source, target)
        if ":" not in target and not path.startswith("docs/") and (ROOT / path).is_file():
            yield path


def resolved(source, target):
    """Return the path in the repository that a link of the file `source` means."""
    return os.path.normpath(os.path.join(os.path.dirname(source), target))


def outside_code(markdown, change):
    """Return the text with what is not code changed."""
    parts, end = [], 0
    for match in CODE.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])


def notebook_page(path):
    """Return the Markdown of a notebook and the outputs that it was saved with."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            parts.append(_output(output.get("data", {"text/plain": output.get("text", "")})))
    return "\n\n".join(parts) + "\n"


def _output(data):
    data = {kind: "".join(content) for kind, content in data.items()}
    if "image/png" in data:
        return f'<img alt="output of the cell above" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    return f"```text\n{data['text/plain'].rstrip()}\n```"


def public_names():
    """Yield the public names of the package's modules as `keras_mpt.layers.MPTDense`."""
    for module in _exported(ROOT / "keras_mpt/__init__.py"):
        path = ROOT / "keras_mpt" / module
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.is_file():  # else it is a name that another module exports, too
            yield from (f"keras_mpt.{module}.{name}" for name in _exported(path))


def _exported(path):
    """Return the names in a module's `__all__`; without one, those of its public functions and classes."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return ast.literal_eval(node.value)
    defined = (node.name for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
    return [name for name in defined if not name.startswith("_")]
