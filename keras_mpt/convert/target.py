"""What a model is converted to: the interface of targets."""

from keras_mpt.convert.kernels import Format
from keras_mpt.convert.report import ConversionError


class Target:
    """A kind of file. A new one is a subclass in a file of its own, in `engines.TARGETS` if `run` shall know it.

    Attributes:
        name: As an argument of `run` and in the report.
        engine: The name in words of what runs the file.
        lossy: Whether differences to the model are reported only.
        formats: Instances of `Format`: each kernel gets the first that fits it.
    """

    name = ""
    engine = ""
    lossy = False
    formats = (Format(),)

    def choose(self, kernel):
        """Set the format of a `Kernel`, and why it is none of those before.

        Raises:
            ConversionError: None fits.
        """
        for kernel.format in self.formats:
            reason = kernel.format.unfit(kernel)
            if reason is None:
                return
            kernel.why = reason
        raise ConversionError(f"Layer {kernel.name!r} cannot be stored as {self.formats[0].name}: {kernel.why}.")

    def compile(self, graph):
        """Return the bytes of a file that computes what `graph.model` does.

        It is called for the whole model, and for the pieces between signs, to check these: see `Graph`. Inputs and
        outputs keep their order, and where the file has names, `graph.inputs` and `graph.outputs`.

        Raises:
            ConversionError: The engine cannot do that, or the file has not the forms that the kernels' formats say.
        """
        raise NotImplementedError

    def decided(self, signs):
        """Return the signs at cuts that the last file of a whole graph decides without floats, from those before them.

        Args:
            signs: List of an int8 array for each cut of the graph.

        Returns:
            A dict of int8 arrays by the index of the cut.
        """
        return {}

    def annotated(self, content, facts):
        """Return a file that says of itself what is in a dict, see `annotations.metadata`, if files can do so."""
        return content

    def operations(self, content):
        """Return how often each kind of operation is in a file, as a dict by name."""
        raise NotImplementedError

    def runtimes(self):
        """Return the names of the runtimes that are installed, the first one being the default of `session`."""
        return [self.engine]

    def session(self, content, runtime=None, threads=2):
        """Return a `Session` of a file.

        Raises:
            ValueError: The file is of another kind.
        """
        raise NotImplementedError


class Session:
    """A file that is ready to run.

    Attributes:
        inputs, outputs: A `Tensor` for each, in the order of the graph that was compiled.
    """

    inputs = outputs = ()

    def __call__(self, arrays):
        """Return the outputs on one batch, a list of arrays.

        Args:
            arrays: List of arrays, one for each input, of the size that the file takes.
        """
        raise NotImplementedError
