"""The interface of targets of conversion."""

from keras_mpt.convert.kernels import Format
from keras_mpt.convert.report import ConversionError


class Target:
    """Base class of the kinds of files. `run` and `latency` accept the targets in `engines.TARGETS`.

    Attributes:
        name: Name in arguments of `run` and in reports.
        engine: Name of the runtime in words.
        formats: Instances of `Format`: each kernel gets the first that fits.
        lossy: Whether differences to the model are only reported, not refused.
        endings: Endings of the paths of its files.
    """

    name = ""
    engine = ""
    formats = (Format(),)
    lossy = False
    endings = (".tflite",)

    def choose(self, kernel):
        """Set the format of a `Kernel`, and the reason against the formats before it.

        Raises:
            ConversionError: No format fits.
        """
        for kernel.format in self.formats:
            reason = kernel.format.unfit(kernel)
            if reason is None:
                return
            kernel.why = reason or kernel.why
        raise ConversionError(f"Layer {kernel.name!r} cannot be stored as {self.formats[0].name}: {kernel.why}.")

    def compile(self, graph):
        """Return the bytes of a file that computes the outputs of `graph.model`.

        It is called for the whole model, and for the pieces between signs to check them: see `Graph`. Inputs and
        outputs keep their order, and have the names `graph.inputs` and `graph.outputs` if the file stores names.

        Raises:
            ConversionError: The engine cannot convert the graph, or the file does not have the formats of the kernels.
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
        """Return a file with a dict as metadata, see `annotations.metadata`; by default, files have none."""
        return content

    def notes(self, content):
        """Return further facts on a file for the report, a list of `(heading, text)`."""
        return []

    def written(self, content, path):
        """Return the bytes to write to a path: by default, those of the file."""
        return content

    def operations(self, content):
        """Return the number of operations of each kind in a file, a dict by name."""
        raise NotImplementedError

    def runtimes(self):
        """Return the names of the installed runtimes. The first is the default of `session`."""
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
        inputs, outputs: Lists of `Tensor`, in the order of the compiled graph.
    """

    inputs = outputs = ()

    def __call__(self, arrays):
        """Return the outputs on a batch, a list of arrays.

        Args:
            arrays: List of arrays, one for each input, with the batch size of the file.
        """
        raise NotImplementedError
