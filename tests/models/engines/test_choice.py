"""What a key names when the engine asked for is wrong, missing, or too slow to make."""

import logging

import pytest
import torch

from pixelmill.models import build, torch_network
from pixelmill.models.build import build_network, load_network
from pixelmill.models.engines import choice, openvino
from pixelmill.models.engines.choice import settle_engine
from pixelmill.models.engines.compiled import compile_pays
from pixelmill.models.engines.torch_eager import TorchTrunk
from pixelmill.models.network import EngineNetwork


class WrongTrunk(TorchTrunk):
    """An engine that scores every image upside down."""

    def __call__(self, images):
        return super().__call__(images.flip(1))


@pytest.fixture
def wrong_openvino(monkeypatch):
    monkeypatch.setattr(
        torch_network, "OpenVinoTrunk", lambda pixels, precision, folder: WrongTrunk(pixels)
    )


def test_an_engine_that_answers_otherwise_is_refused_where_the_key_is_made(
    resolve, wrong_openvino, caplog
):
    with caplog.at_level(logging.WARNING):
        spec = resolve(engine="openvino")
    assert (spec.engine, spec.precision) == ("torch", "fp32")
    assert spec.key == resolve().key
    assert "openvino fp32 was asked for and is not used" in spec.engine_note
    assert "raw_error is" in spec.engine_note
    assert spec.engine_note in caplog.text


def test_a_worker_on_which_the_engine_answers_otherwise_says_what_to_do(resolve, wrong_openvino):
    spec = resolve().model_copy(update={"engine": "openvino"})
    with pytest.raises(ValueError, match="on this machine openvino fp32 does not answer as torch"):
        load_network(spec)


def test_an_engine_that_cannot_be_made_is_replaced_with_its_reason(resolve, monkeypatch):
    def fail(pixels, precision, folder):
        raise RuntimeError("no such operation: roll")

    monkeypatch.setattr(torch_network, "OpenVinoTrunk", fail)
    spec = resolve(engine="openvino")
    assert spec.engine == "torch"
    assert "RuntimeError: no such operation: roll" in spec.engine_note


def test_an_engine_that_is_not_installed_is_an_error_if_it_is_named(resolve, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'pixelmill\[openvino\]'"):
        resolve(engine="openvino")
    assert resolve(engine="auto").engine == "torch"


def test_engine_and_precision_are_in_the_key_and_the_defaults_change_none(resolve, monkeypatch):
    monkeypatch.setattr(choice, "check_parity", lambda *_: choice.GateReport({}, ()))
    monkeypatch.setattr(
        torch_network, "OpenVinoTrunk", lambda pixels, precision, folder: TorchTrunk(pixels)
    )
    plain = resolve()
    assert resolve(engine="torch").key == plain.key
    assert plain.model_copy(update={"engine_note": "other words"}).key == plain.key
    keys = {
        resolve(engine=engine, precision=precision).key
        for engine, precision in [
            ("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"),
        ]
    }  # fmt: skip
    assert len(keys) == 4


def test_a_gate_is_passed_once_for_all_processes(resolve, monkeypatch):
    calls = []
    check = choice.check_parity
    monkeypatch.setattr(choice, "check_parity", lambda *args: calls.append(1) or check(*args))
    spec = resolve(precision="bf16")
    assert spec.precision == "bf16", spec.engine_note
    assert resolve(precision="bf16") == spec
    build._cached_network.cache_clear()
    network = load_network(spec)
    assert calls == [1]
    assert network.gate is not None
    assert network.gate.passed
    assert set(network.gate.figures) == {"raw_error", "labels_equal"}
    assert network.engine_used == "torch bf16"
    assert load_network(resolve()).gate is None


def test_a_damaged_note_of_a_gate_is_passed_again(resolve, cache):
    spec = resolve(precision="bf16")
    (kept,) = (cache / "gates").iterdir()
    kept.write_text("{")
    assert resolve(precision="bf16") == spec
    assert kept.read_text() != "{"


def test_what_a_machine_without_gpu_cannot_tell_is_left_to_the_workers(resolve):
    spec = resolve(precision="fp16")
    assert (spec.engine, spec.precision, spec.engine_note) == ("torch", "fp16", "")
    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        build_network(spec)


def test_openvino_is_refused_on_a_gpu(resolve):
    spec = resolve().model_copy(update={"engine": "openvino"})
    with pytest.raises(ValueError, match="OpenVINO is for CPUs"):
        build_network(spec, "cuda")


@pytest.mark.parametrize(
    ("num_images", "pays"), [(1_000, False), (10_000, False), (25_000, True), (10**6, True)]
)
def test_compiling_must_save_three_times_its_own_time(num_images: int, pays: bool):
    # 25,000 x 40 ms x (1 - 1 / 1.25) = 200 s saved
    decided = compile_pays(num_images, eager_s=0.04, speedup=1.25, compile_s=60)
    assert decided is pays
    assert not compile_pays(num_images, eager_s=0.04, speedup=0.9, compile_s=60)


def test_auto_is_decided_once_whatever_is_planned_later(resolve, monkeypatch):
    monkeypatch.setattr(openvino, "import_openvino", lambda: None)
    monkeypatch.setattr(choice, "_has_openvino", lambda: False)
    monkeypatch.setattr(choice, "_can_compile", lambda device: True)
    monkeypatch.setattr(choice, "_seconds_per_image", lambda network, spec: 0.01)
    monkeypatch.setattr(torch_network, "CompiledTrunk", TorchTrunk)
    spec = resolve(engine="auto", num_images=10**7)
    assert spec.engine == "torch-compile"
    assert resolve(engine="auto", num_images=1) == spec
    assert resolve(engine="auto") == spec
    # another model is another decision
    assert resolve(engine="auto", num_images=1, classes=("x", "y", "z")).engine == "torch"


def test_auto_takes_openvino_on_a_cpu_that_has_it_and_its_precision_is_kept(resolve, monkeypatch):
    monkeypatch.setattr(choice, "_has_openvino", lambda: True)
    monkeypatch.setattr(
        torch_network, "OpenVinoTrunk", lambda pixels, precision, folder: TorchTrunk(pixels)
    )
    spec = resolve(engine="auto", precision="bf16")
    assert (spec.engine, spec.precision) == ("openvino", "bf16")


def test_the_reference_needs_no_gate(resolve):
    def build_nothing(spec, device):
        raise AssertionError("nothing to compare")

    spec = resolve()
    assert settle_engine(spec, build_nothing, device="cpu") is spec
    assert isinstance(load_network(spec), EngineNetwork)


def test_outputs_of_a_forward_pass_are_not_overwritten_by_the_next(resolve):
    network = build_network(resolve())
    first = network.forward(torch.zeros((2, 32, 48, 3), dtype=torch.uint8))
    before = first.clone()
    network.forward(torch.full((2, 32, 48, 3), 200, dtype=torch.uint8))
    assert torch.equal(first, before)
