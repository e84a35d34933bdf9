"""Publishing and loading, with the real client against a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hub_server import OWNER, Fault, Hub, connect, serve
from huggingface_hub import constants
from PIL import Image
from samples import image, outputs, trained

import timm_ternary
from timm_ternary import cli
from timm_ternary.checkpoint.directory import load_packed, save_float, save_packed
from timm_ternary.checkpoint.weights_file import WEIGHTS_NAME
from timm_ternary.hub import push as publishing
from timm_ternary.hub import verify
from timm_ternary.hub.card import write_card
from timm_ternary.hub.push import push_directory, push_to_hub
from timm_ternary.report import write_report

pytestmark = [pytest.mark.hub, pytest.mark.canary]

REPO = f"{OWNER}/net"
MODEL_FILES = {"model.safetensors", "config.json", "README.md"}
AGAIN = "type the same again"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """A trained model; tests do not change it."""
    return trained("resnet8_cifar_tern")


@pytest.fixture
def packed(model: torch.nn.Module, tmp_path: Path) -> Path:
    """A packed directory of a test's own."""
    return save_packed(model, tmp_path / "packed")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: status, stdout and the last line of stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["timm-ternary", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, (err.splitlines() or [""])[-1]

    return call


def cached() -> list[Path]:
    """Files in the client's cache; each holds what its name says, or the test fails."""
    blobs = [path for path in Path(constants.HF_HUB_CACHE).glob("*/blobs/*") if path.is_file()]
    for blob in blobs:
        data = blob.read_bytes()
        git = sha1(b"blob %d\0" % len(data) + data).hexdigest()
        assert blob.name in (git, sha256(data).hexdigest())
    return blobs


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a process that finds two commits of a model on a Hub.

    HERE is a directory with images and logits, WARM one with a cache that holds the model.
    """
    home = tmp_path_factory.mktemp("home")
    older, newer = trained(seed=9), trained()
    torch.save((image(), outputs(newer), outputs(older)), home / "logits.pt")
    Image.effect_noise((40, 40), 90).convert("RGB").save(home / "noise.png")
    with serve() as server, pytest.MonkeyPatch.context() as patch:
        connect(patch, server, home / "warm" / "hub")
        push_to_hub(older, REPO)
        push_to_hub(newer, REPO)
        timm.create_model(f"hf-hub:{REPO}", pretrained=True)
        yield {
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HERE": str(home),
            "WARM": str(home / "warm"),
            "FIRST": list(server.repositories[REPO].commits)[1],
        }


class TestPush:
    """What a repository holds then."""

    def test_a_directory_by_the_list(self, hub: Hub, packed: Path) -> None:
        for name in ("metrics.json", "history.json", "curve.png", "index.html"):
            (packed / name).write_text("{}")
        digest = sha256((packed / WEIGHTS_NAME).read_bytes()).hexdigest()
        (packed / "training.json").write_text(json.dumps({"weights_sha256": digest}))
        for name in ("training_args.bin", "optimizer.pt", "notes.txt", ".secret"):
            (packed / name).write_text("not for others")
        save_packed(trained(seed=1), packed / "checkpoint-7")
        assert push_directory(packed, REPO) == f"{hub.url}/{REPO}"
        held = hub.repositories[REPO].files()
        assert set(held) == MODEL_FILES | {
            "metrics.json", "training.json", "history.json", "curve.png", "index.html"
        }  # fmt: skip
        assert held[WEIGHTS_NAME] == (packed / WEIGHTS_NAME).read_bytes()
        assert len(hub.repositories[REPO].titles) == 1
        assert not (packed / "README.md").exists()

    def test_the_card_that_is_made(self, hub: Hub, packed: Path) -> None:
        push_directory(packed, REPO)
        card = hub.repositories[REPO].files()["README.md"].decode()
        for part in (
            "library_name: timm\n", "pipeline_tag: image-classification\n", "- timm_ternary\n",
            "- transformers\n", "```python\nimport timm_ternary", f"hf-hub:{REPO}",
        ):  # fmt: skip
            assert part in card

    def test_figures_of_other_weights_stay_here(self, hub: Hub, packed: Path) -> None:
        for name in ("metrics.json", "history.json", "weights.png", "index.html"):
            (packed / name).write_text("{}")
        (packed / "training.json").write_text(json.dumps({"weights_sha256": "0" * 64}))
        push_directory(packed, REPO)
        assert set(hub.repositories[REPO].files()) == MODEL_FILES

    def test_the_report_goes_with_its_weights(self, hub: Hub, packed: Path, run: Run) -> None:
        figures = {"report/index.html", "report/kernels.png", "report/weights.png"}
        write_report(load_packed(packed), packed / "report", source=packed)
        (packed / "report" / "notes.txt").write_text("mine")
        status, out, _ = run("push", packed, REPO, "--json")
        assert status == 0 and figures < set(json.loads(out)["files"])
        held = hub.repositories[REPO].files()
        assert set(held) == MODEL_FILES | figures
        assert "](report/weights.png)" in held["README.md"].decode()
        # Of a model in memory too, with the directory of its run.
        push_to_hub(load_packed(packed), f"{OWNER}/other", directory=packed)
        assert set(hub.repositories[f"{OWNER}/other"].files()) == MODEL_FILES | figures
        # Not with other weights, which the report knows nothing of.
        save_packed(trained("resnet8_cifar_tern", seed=7), packed)
        push_directory(packed, f"{OWNER}/third")
        held = hub.repositories[f"{OWNER}/third"].files()
        assert set(held) == MODEL_FILES and "](report" not in held["README.md"].decode()

    def test_a_card_that_was_made_before_is_made_anew(self, hub: Hub, packed: Path) -> None:
        write_card(packed, license="mit")
        assert "local-dir:" in (packed / "README.md").read_text()
        push_directory(packed, REPO)
        card = hub.repositories[REPO].files()["README.md"].decode()
        assert f"hf-hub:{REPO}" in card and "local-dir:" not in card
        assert "license: mit\n" in card

    def test_a_card_that_the_hub_refuses(self, hub: Hub, packed: Path) -> None:
        (packed / "README.md").write_text("---\nlicense: nonsense\n---\nMine.\n")
        with pytest.raises(ValueError, match=rf"cannot upload to '{REPO}': .*license") as error:
            push_directory(packed, REPO)
        assert "\n" not in str(error.value) and hub.repositories[REPO].titles == []

    def test_a_card_that_is_there(self, hub: Hub, packed: Path) -> None:
        (packed / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
        push_directory(packed, REPO)
        assert hub.repositories[REPO].files()["README.md"].endswith(b"Mine.\n")

    @pytest.mark.parametrize("packed_form", [False, True])
    def test_a_model(self, hub: Hub, packed_form: bool, tmp_path: Path) -> None:
        network = trained()
        if packed_form:
            timm_ternary.pack_(network)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        (tmp_path / "metrics.json").write_text('{"eval_accuracy": 0.5}')
        (tmp_path / WEIGHTS_NAME).write_text("of an earlier model")
        timm_ternary.push_to_hub(network, REPO, encoding="base3", directory=tmp_path)
        held = hub.repositories[REPO].files()
        assert set(held) == MODEL_FILES | {"metrics.json"}
        assert json.loads(held["config.json"])["model_args"]["packed"] == "base3"
        names = safetensors.torch.load(held[WEIGHTS_NAME]).keys()
        assert any(name.endswith("weight_packed") for name in names)
        assert not any("original" in name for name in names)
        loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
        assert torch.equal(outputs(loaded), outputs(network))
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_a_float_model(self, hub: Hub) -> None:
        network = trained("test_resnet")
        push_to_hub(network, REPO)
        loaded = timm.create_model(f"hf-hub:{REPO}", pretrained=True)
        assert torch.equal(outputs(loaded), outputs(network))

    def test_other_layouts(self, hub: Hub) -> None:
        for repo, network in (
            ("last", trained().to(memory_format=torch.channels_last)),
            ("half", trained("resnet8_cifar_tern").to(torch.bfloat16)),
        ):
            push_to_hub(network, f"{OWNER}/{repo}")
        assert len(hub.repositories) == 2

    @pytest.mark.parametrize("method", ["rel", "abcnet", "admm"])
    def test_methods_that_come_back_only_nearly(self, hub: Hub, method: str) -> None:
        push_to_hub(trained(ternary=method), REPO)
        assert WEIGHTS_NAME in hub.repositories[REPO].files()

    def test_private(self, hub: Hub, packed: Path) -> None:
        push_directory(packed, REPO, private=True)
        assert hub.repositories[REPO].private

    def test_a_branch_and_a_pull_request(self, hub: Hub, packed: Path, run: Run) -> None:
        push_directory(packed, REPO)
        assert run("push", packed, REPO, "--revision", "next")[0] == 0
        (packed / "metrics.json").write_text("{}")
        push_directory(packed, REPO, revision="next")
        status, out, _ = run("push", packed, REPO, "--create-pr")
        assert (status, out.split()[0]) == (0, f"{hub.url}/discussions/1")
        repository = hub.repositories[REPO]
        assert set(repository.files("main")) == MODEL_FILES
        assert set(repository.files("next")) == MODEL_FILES | {"metrics.json"}
        assert set(repository.files("refs/pr/1")) == MODEL_FILES | {"metrics.json"}

    def test_the_command(self, hub: Hub, packed: Path, run: Run) -> None:
        (packed / "notes.txt").write_text("")
        status, out, _ = run("push", packed, REPO, "--private")
        assert (status, out) == (0, f"{hub.url}/{REPO}\nnot uploaded: notes.txt\n")
        assert hub.repositories[REPO].private
        status, out, _ = run("push", packed, REPO, "--json")
        files = ["model.safetensors", "config.json"]
        assert json.loads(out) == {"url": f"{hub.url}/{REPO}", "files": files}


class TestNothingIsUploaded:
    """Where something is wrong before."""

    @pytest.fixture(autouse=True)
    def no_request(self, hub: Hub) -> Iterator[None]:
        yield
        assert hub.log == []

    def test_a_model_that_does_not_come_back(
        self, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def save_another(_: Any, directory: Path, encoding: str) -> None:
            save_packed(trained(seed=3), directory, encoding)

        monkeypatch.setattr(publishing, "save_packed", save_another)
        with pytest.raises(ValueError, match="does not give the logits of this one"):
            push_to_hub(model, REPO)

    def test_forms_that_differ(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_another(directory: Path, packed: bool = True) -> torch.nn.Module:
            return trained(seed=0 if packed else 3)

        monkeypatch.setattr(verify, "load_packed", load_another)
        with pytest.raises(ValueError, match="packed and trainable form are not the same"):
            push_directory(packed, REPO)

    @pytest.mark.parametrize("method", ["tga", "bwn"])  # bwn trains no parameters of its own
    def test_latent_weights(self, packed: Path, method: str) -> None:
        network = trained("resnet8_cifar_tern", ternary=method)
        safetensors.torch.save_file(dict(network.state_dict()), packed / WEIGHTS_NAME)
        with pytest.raises(ValueError, match=r"latent weights.*timm-ternary pack"):
            push_directory(packed, REPO)

    def test_no_model_of_timm(self) -> None:
        with pytest.raises(ValueError, match="Linear is no timm classification model"):
            push_to_hub(torch.nn.Linear(2, 2), REPO)

    def test_another_quantization_in_the_configuration(self, packed: Path) -> None:
        config = json.loads((packed / "config.json").read_text())
        config["quantization_config"]["method"] = "ttq"
        (packed / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"quantization_config is not that of.*pack"):
            push_directory(packed, REPO)

    @pytest.mark.parametrize("text", ["{", "{}", "[]"])
    def test_a_configuration_that_is_none(self, tmp_path: Path, text: str) -> None:
        directory = save_float(trained("test_resnet"), tmp_path / "float")
        (directory / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: "):
            push_directory(directory, REPO)

    def test_logits_that_are_not_finite(self, tmp_path: Path) -> None:
        network = trained("test_resnet")
        with torch.no_grad():
            network.fc.bias[0] = torch.inf
        with pytest.raises(ValueError, match="not finite"):
            push_directory(save_float(network, tmp_path / "float"), REPO)

    @pytest.mark.parametrize("missing", [WEIGHTS_NAME, "config.json"])
    def test_a_missing_file(self, packed: Path, missing: str, run: Run) -> None:
        (packed / missing).unlink()
        (packed / "pytorch_model.bin").write_bytes(b"PK")
        status, _, line = run("push", packed, REPO)
        assert status == 2 and f"no {missing}" in line and "timm-ternary pack" in line

    def test_a_damaged_file(self, packed: Path, run: Run) -> None:
        data = bytearray((packed / WEIGHTS_NAME).read_bytes())
        data[-1] ^= 1
        (packed / WEIGHTS_NAME).write_bytes(data)
        status, _, line = run("push", packed, REPO)
        assert status == 2 and "is damaged" in line

    @pytest.mark.parametrize("name", ["net", "a/b/c", "me/", "/net", "me/n--t", "me/n t", ""])
    def test_a_name_that_is_none(self, packed: Path, name: str, run: Run) -> None:
        status, _, line = run("push", packed, name)
        assert status == 2 and line.startswith("error: ") and name in line

    def test_offline(self, packed: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        status, _, line = run("push", packed, REPO)
        assert status == 2 and "unset HF_HUB_OFFLINE" in line


class TestFailuresOfUploads:
    """One line each; then the same command succeeds."""

    @pytest.mark.parametrize("token", [None, "hf_of_nobody"])
    def test_no_token(
        self, hub: Hub, packed: Path, run: Run, monkeypatch: pytest.MonkeyPatch, token: str | None
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("HF_TOKEN", token or "")
            patch.setattr(constants, "HF_TOKEN_PATH", str(packed / "none"))
            status, _, line = run("push", packed, REPO)
        assert status == 2 and "(401); type: hf auth login, or set HF_TOKEN" in line
        assert hub.repositories == {}
        assert run("push", packed, REPO)[0] == 0

    def test_no_permission(self, hub: Hub, packed: Path, run: Run) -> None:
        status, _, line = run("push", packed, "others/net")
        assert status == 2 and "'others/net'" in line and "(403)" in line and "write access" in line

    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            (Fault("POST", "/api/repos/create", status=500), "the Hub itself failed (500)"),
            (Fault("POST", "/preupload/", 6, status=500), "the Hub itself failed (500)"),
            (Fault("PUT", "/_objects/", 6, status=503), "the Hub itself failed (503)"),
            (Fault("PUT", "/_objects/", 6, cut=True), "no connection to"),
            (Fault("POST", "/commit/", 6, cut=True), "no connection to"),
            (Fault("POST", "/commit/", status=409), "somebody else is changing it (409)"),
        ],
        ids=lambda value: value if isinstance(value, str) else f"{value.method} {value.path}",
    )
    def test_then_the_same_command(
        self, hub: Hub, packed: Path, run: Run, fault: Fault, says: str
    ) -> None:
        hub.faults.append(fault)
        status, _, line = run("push", packed, REPO)
        assert status == 2 and REPO in line and says in line and AGAIN in line
        assert not any(repository.files() for repository in hub.repositories.values())
        hub.faults.clear()
        there, sent = len(hub.objects), len(hub.requests("PUT"))
        assert run("push", packed, REPO)[0] == 0
        assert set(hub.repositories[REPO].files()) == MODEL_FILES
        assert len(hub.requests("PUT")) - sent == 1 - there  # what arrived is not sent again

    def test_a_short_interruption(self, hub: Hub, packed: Path) -> None:
        hub.faults.append(Fault("PUT", "/_objects/", cut=True))
        push_directory(packed, REPO)
        assert hub.faults[0].times == 0 and WEIGHTS_NAME in hub.repositories[REPO].files()

    def test_no_connection(
        self, hub: Hub, packed: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        status, _, line = run("push", packed, REPO)
        assert status == 2 and "no connection to http://127.0.0.1:9" in line and AGAIN in line


class TestFailuresOfDownloads:
    """One line each; then the same command succeeds, and the cache holds whole files only."""

    def test_what_is_not_there(self, hub: Hub, packed: Path, run: Run) -> None:
        assert "no such repository" in run("inspect", f"hf-hub:{REPO}")[2]
        push_directory(packed, REPO)
        assert "no such revision" in run("inspect", f"hf-hub:{REPO}@v9")[2]
        del hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]][WEIGHTS_NAME]
        assert f"no file {WEIGHTS_NAME}" in run("inspect", f"hf-hub:{REPO}")[2]
        assert cached()

    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            (Fault("GET", WEIGHTS_NAME, 99, cut=True), "no connection to"),
            (Fault("GET", "config.json", 99, cut=True), "no connection to"),
            (Fault("GET", WEIGHTS_NAME, 99, status=500), "the Hub itself failed (500)"),
            (Fault("HEAD", WEIGHTS_NAME, 99, status=500), "the Hub itself failed (500)"),
        ],
        ids=lambda value: value if isinstance(value, str) else f"{value.method} {value.path}",
    )
    def test_then_the_same_command(
        self, hub: Hub, packed: Path, run: Run, fault: Fault, says: str
    ) -> None:
        push_directory(packed, REPO)
        hub.faults.append(fault)
        status, _, line = run("inspect", f"hf-hub:{REPO}")
        assert status == 2 and REPO in line and says in line
        before = {path.name for path in cached()}
        assert not before & {sha256(file.read_bytes()).hexdigest() for file in packed.iterdir()}
        hub.faults.clear()
        assert run("inspect", f"hf-hub:{REPO}")[0] == 0
        assert len(cached()) == 2

    def test_a_short_interruption_resumes(self, hub: Hub, packed: Path, run: Run) -> None:
        push_directory(packed, REPO)
        hub.faults.append(Fault("GET", WEIGHTS_NAME, cut=True))
        assert run("inspect", f"hf-hub:{REPO}")[0] == 0
        assert hub.faults[0].times == 0 and len(hub.requests(f"GET /{REPO}/resolve")) == 3
        assert len(cached()) == 2

    def test_a_flipped_byte(self, hub: Hub, packed: Path, run: Run) -> None:
        push_directory(packed, REPO)
        hub.faults.append(Fault("GET", WEIGHTS_NAME, flip=-1))
        status, _, line = run("inspect", f"hf-hub:{REPO}")
        tensor = line.partition("tensor ")[2].split()[0]
        assert status == 2 and tensor in safetensors.torch.load_file(packed / WEIGHTS_NAME)
        assert "is damaged" in line and REPO in line and AGAIN in line
        assert len(cached()) == 1  # config.json
        assert run("inspect", f"hf-hub:{REPO}")[0] == 0

    def test_what_is_damaged_on_the_hub_is_kept_as_it_is(
        self, hub: Hub, packed: Path, run: Run
    ) -> None:
        push_directory(packed, REPO)
        repository = hub.repositories[REPO]
        files = repository.commits[repository.branches["main"]]
        whole = files[WEIGHTS_NAME]
        files[WEIGHTS_NAME] = type(whole)(whole.data[:-1] + b"?", lfs=True)
        status, _, line = run("inspect", f"hf-hub:{REPO}")
        assert status == 2 and "is damaged" in line and AGAIN not in line
        assert len(cached()) == 2

    def test_offline_without_a_cache(
        self, hub: Hub, packed: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        push_directory(packed, REPO)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        status, _, line = run("inspect", f"hf-hub:{REPO}")
        assert status == 2 and "unset HF_HUB_OFFLINE" in line

    def test_training_from_it(self, hub: Hub, packed: Path, run: Run, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"model: hf-hub:{REPO}\ndataset: digits\noutput_dir: {tmp_path}/out\n")
        status, _, line = run("train", recipe)
        assert status == 2 and "no such repository" in line
        push_directory(packed, REPO)
        for name in ("config.json", WEIGHTS_NAME):
            hub.faults.append(Fault("GET", name, 99, cut=True))
            status, _, line = run("train", recipe)
            assert status == 2 and "no connection to" in line
            hub.faults.clear()


class TestFreshProcess:
    """After ``import timm_ternary``, the stock calls of timm and transformers."""

    def test_timm(self, published: dict[str, str], tmp_path: Path) -> None:
        _fresh(
            """
assert torch.equal(logits(load()), expected)
assert is_packed(load()) and not is_packed(load(packed=False))
assert torch.equal(logits(load(packed=False)), expected)
assert torch.equal(logits(load("@" + os.environ["FIRST"])), older)
assert logits(load(num_classes=3)).shape == (2, 3)
assert load(in_chans=1).eval()(x[:, :1]).shape == expected.shape
features = load(features_only=True).eval()(x)
assert len(features) > 2 and features[0].ndim == 4
""",
            {**published, "HF_HOME": str(tmp_path)},
        )

    def test_transformers(self, published: dict[str, str], tmp_path: Path) -> None:
        _fresh(
            """
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained(name).eval()
assert torch.allclose(model(x).logits, expected, atol=1e-6)
processor = AutoImageProcessor.from_pretrained(name)
pixels = processor(Image.open(here / "noise.png"))["pixel_values"]
known = load().pretrained_cfg
assert tuple(pixels.shape[1:]) == tuple(known["input_size"])
for found in (pipeline("image-classification", model=name), pipeline(model=name)):
    best = found(str(here / "noise.png"))[0]
    probabilities = load().eval()(pixels).softmax(1)[0]
    assert abs(best["score"] - float(probabilities.max())) < 1e-5
    assert best["label"].endswith(str(int(probabilities.argmax())))
""",
            {**published, "HF_HOME": str(tmp_path)},
        )

    def test_offline_with_a_warm_cache(self, published: dict[str, str]) -> None:
        gone = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
        _fresh(
            """
from transformers import AutoModelForImageClassification
assert torch.equal(logits(load()), expected)
model = AutoModelForImageClassification.from_pretrained(name).eval()
assert torch.allclose(model(x).logits, expected, atol=1e-6)
""",
            {**published, **gone, "HF_HOME": published["WARM"]},
        )


def _fresh(code: str, environment: dict[str, str]) -> None:
    """Run `code` in a process of its own."""
    start = f"""
import os
from pathlib import Path
import torch
from PIL import Image
import timm
import timm_ternary
from timm_ternary.nn.convert import is_packed
name, here = {REPO!r}, Path(os.environ["HERE"])
x, expected, older = torch.load(here / "logits.pt")
def load(revision="", **kwargs):
    return timm.create_model(f"hf-hub:{{name}}{{revision}}", pretrained=True, **kwargs)
@torch.no_grad()
def logits(model):
    return model.eval()(x)
"""
    done = subprocess.run(
        [sys.executable, "-c", start + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
