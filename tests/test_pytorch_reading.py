"""Damaged PyTorch files, files that ask for more memory than they hold, tensors that are no plain numbers."""

import resource
import zipfile

import keras
import numpy as np
import pytest

import keras_mpt
from keras_mpt.convert import CheckpointError, from_pytorch
from keras_mpt.convert.pytorch import reading

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow_with("jax", "torch")


def state(**more):
    rng = np.random.default_rng(0)
    tensors = {f"layer{i}.weight": torch.from_numpy(rng.normal(size=(40, 30)).astype("float32")) for i in range(3)}
    return {**tensors, **more}


def test_any_flipped_bit_of_a_zip_is_found(tmp_path):
    file, rng = tmp_path / "a.pth", np.random.default_rng(0)
    torch.save({"state_dict": state(), "prune_rate": 0.5}, file)
    content = bytearray(file.read_bytes())
    wanted = reading.read(file).arrays
    places = np.flatnonzero([byte != 0 for byte in content])  # zeros may be padding, which nothing reads
    loaded = 0
    for place in rng.choice(places, 60, replace=False):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        try:
            found = reading.read(file).arrays
        except CheckpointError:
            continue
        loaded += 1  # a date, for example
        assert found.keys() == wanted.keys() and all(np.array_equal(found[key], wanted[key]) for key in wanted)
    assert loaded < 20


def test_the_damaged_member_is_named(tmp_path):
    torch.save(state(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    place = content.index(state()["layer1.weight"].numpy().tobytes()) + 1000
    (tmp_path / "a.pth").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(CheckpointError, match=r"a.pth is no PyTorch checkpoint, or is damaged.*checksum of 'a/data/1'"):
        reading.read(tmp_path / "a.pth")


def test_compressed_files_are_refused(tmp_path):
    torch.save({"big.weight": torch.zeros(4000, 1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert (tmp_path / "b.pth").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="b.pth is refused: it is compressed.*torch.save` compresses nothing"):
        reading.read(tmp_path / "b.pth")


SPREAD = {
    "one": lambda: {"a.weight": torch.zeros(1).expand(30000, 20000)},
    "no memory has so much": lambda: {"a.weight": torch.zeros(1).expand(10**6, 10**6)},
    "rows": lambda: {"a.weight": torch.zeros(1, 1000).expand(10**6, 1000)},
    "many of one": lambda: dict.fromkeys((f"{i}.weight" for i in range(10_000)), torch.zeros(100_000)),
    "views": lambda: {f"{i}.weight": v for v in [torch.zeros(100_000)] for i in range(10_000) for v in [v[i % 9 :]]},
}


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("case", SPREAD)
def test_a_short_file_cannot_take_much_memory(case, saved, tmp_path):
    source = SPREAD[case]()
    if saved:
        torch.save(source, tmp_path / "a.pth")
        source = tmp_path / "a.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="is refused: .* bytes, of which it holds"):
        reading.read(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_arrays_that_are_spread_are_refused():
    with pytest.raises(CheckpointError, match="the state dict is refused: the tensor at 'a' of shape"):
        reading.read({"a": np.broadcast_to(np.zeros(1), (10**5, 10**5))})


def test_tied_weights_are_read():
    tied = torch.ones(10, 10)
    assert set(reading.read({"a": tied, "b": tied.T}).arrays) == {"a", "b"}


UNUSUAL = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a tensor of layout sparse_coo"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), "a tensor of layout sparse_csr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "a quantized tensor"),
    "float8": (lambda: torch.eye(3).to(torch.float8_e4m3fn), "a tensor of torch.float8_e4m3fn"),
    "meta": (lambda: torch.empty(3, 3, device="meta"), "a tensor without values"),
    "complex": (lambda: torch.eye(3).to(torch.complex64), "a tensor of torch.complex64"),
    "conjugated": (lambda: torch.eye(3).to(torch.complex64).conj(), "a tensor of torch.complex64"),
    "negated": (lambda: torch.eye(3).to(torch.complex64).conj().imag, "a conjugated or negated view"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a tensor of layout nested"),
    "array of objects": (lambda: np.array([None]), "an array of object"),
    "number": (lambda: 3.0, "float"),
    "dict": (lambda: {"a": torch.eye(3)}, "dict"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", UNUSUAL)
def test_other_kinds_of_tensors_are_refused_by_key(case):
    make, what = UNUSUAL[case]
    with pytest.raises(CheckpointError, match=f"holds no tensor at 'layer9.weight', but {what}"):
        reading.read(state(**{"layer9.weight": make()}))


def test_keys_of_compiled_models():
    wanted = reading.read(state()).arrays
    inside = {key.replace("layer1.", "layer1._orig_mod."): value for key, value in state().items()}
    for prefix in ("_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        for tensors in (state(), inside):
            found = reading.read({prefix + key: value for key, value in tensors.items()}).arrays
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(CheckpointError, match="holds 'layer1.weight' twice, with and without '_orig_mod.'"):
        reading.read(state(**{"_orig_mod.layer1.weight": torch.ones(1)}))


@pytest.mark.slow  # for PyTorch's compiler, whose import takes seconds
def test_a_compiled_model(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    torch.save(torch.compile(model).state_dict(), tmp_path / "a.pth")
    assert set(reading.read(tmp_path / "a.pth").arrays) == set(model.state_dict())


def test_messages_are_short(tmp_path):
    torch.save({"x\x1b[2J" * 100_000: torch.tensor([float("nan")])}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        reading.read(tmp_path / "a.pth")
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


@pytest.mark.parametrize("source", [3, None, ["a"], True])
def test_what_is_no_checkpoint(source):
    with pytest.raises(CheckpointError, match="`path_or_state_dict` must be a path or a state dict. Received: "):
        reading.read(source)


WRONG = {"trainable": "no", "epsilon": "1e-5", "mapping": ["conv1"], "sparsity": "half"}


@pytest.mark.parametrize("argument", WRONG)
def test_wrong_arguments_are_named(argument):
    model = keras.Sequential([keras.Input((30,)), keras_mpt.layers.MPTDense(40, name="dense")])
    arguments = {"sparsity": 0.5, "layout": "biprop", "mapping": {"dense": "layer0"}, argument: WRONG[argument]}
    with pytest.raises((ValueError, TypeError), match=f"`{argument}` must be .*Received: {argument}="):
        from_pytorch({"layer0.weight": np.ones((40, 30)), "layer0.scores": np.ones((40, 30))}, model, **arguments)
