"""`run` and `chat`: options that change how tokens are chosen, with the server's names and meaning."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from export.contract.errors import InputError
from export.graph.archs._tasks import EMBEDDING, TASK
from runtime_py.text.generator import TextGenerator
from runtime_py.text.logit_processors import LogitRules
from runtime_py.text.sampling import SamplingSettings
from toolchain.cli import app
from toolchain.cli.generation.generating import guesses, template_variables
from toolchain.settings.generation import GenerationSettings

MODEL = SimpleNamespace(
    session=SimpleNamespace(vocab_size=50), stop=frozenset([2]), rules=LogitRules(1.3, suppress_tokens=(9,))
)


def command(*arguments, text=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def run(folder, *options):
    done = command("run", folder, "--prompt", "Once upon a time", "--max-tokens", 12, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["token_ids"]


def test_run_gives_what_the_runtime_gives(served_folder):
    generator = TextGenerator(served_folder)

    def expected(**more):
        pairs = generator.stream("Once upon a time", SamplingSettings(), 12, **more)
        return [token for token, _ in pairs if token is not None]

    plain = expected()
    eos = min(generator.stop)
    assert run(served_folder) == plain
    bias = ("--logit-bias", f"{plain[2]}=-100", "--logit-bias", f"{plain[5]}=-100")
    rules = {
        ("--repetition-penalty", 1.6): LogitRules(repetition_penalty=1.6),
        ("--frequency-penalty", 2): LogitRules(frequency_penalty=2),
        ("--presence-penalty", 2): LogitRules(presence_penalty=2),
        bias: LogitRules(logit_bias=((plain[2], -100.0), (plain[5], -100.0))),
    }
    for options, asked in rules.items():
        assert run(served_folder, *options) == expected(rules=asked) != plain, options
    assert run(served_folder, "--temperature", 2, "--min-p", 1) == plain
    assert run(served_folder, "--stop-token-ids", plain[4]) == plain[: plain.index(plain[4])]
    certain = ("--logit-bias", f"{eos}=100")
    assert run(served_folder, *certain) == []
    assert len(run(served_folder, *certain, "--min-tokens", 5)) == 5
    assert len(run(served_folder, *certain, "--ignore-eos")) == 12
    word = generator.tokenizer.decode(plain[3:4]).strip()
    done = command("run", served_folder, "--prompt", "Once upon a time", "--max-tokens", 12, "--json", "--stop", word)
    assert word not in json.loads(done.stdout)["text"]


def test_what_the_model_asks_for_in_vain_is_said(served_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(served_folder, folder)
    (folder / "generation_config.json").write_text('{"num_beams": 4, "forced_eos_token_id": 2}')
    done = command("run", folder, "--max-tokens", 2)
    assert done.exit_code == 0 and "asks for num_beams, forced_eos_token_id, which this runtime" in done.stderr
    (folder / "generation_config.json").write_text('{"suppress_tokens": "none"}')
    done = command("run", folder, "--max-tokens", 2)
    assert done.exit_code == 2 and "suppress_tokens must be a list of token ids" in done.stderr
    done = command("run", folder, "--stop-token-ids", "a")
    assert done.exit_code == 2 and "--stop-token-ids must be whole numbers" in done.stderr


def test_chat_takes_template_variables(served_folder, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ 'a ' * (extra or 0) }}\n")
    options = ("chat", served_folder, "--chat-template", template, "--max-tokens", 3, "--temperature", 0)
    plain = command(*options, text="Hi\n")
    longer = command(*options, "--template-variable", "extra=30", text="Hi\n")
    assert plain.exit_code == longer.exit_code == 0 and plain.stdout != longer.stdout
    assert command(*options, "--repetition-penalty", 2, "--logit-bias", "5=1", text="Hi\n").exit_code == 0
    for wrong in ("messages=[]", "tools=1", 'extra="x"'):
        assert command(*options, "--template-variable", wrong, text="Hi\n").exit_code == 2, wrong
    without = command("chat", served_folder, "--template-variable", "extra=1", text="Hi\n")
    assert without.exit_code == 2 and "no chat template" in without.stderr


def test_options_replace_the_models_own_rules():
    assert GenerationSettings().rules(MODEL) == MODEL.rules
    assert GenerationSettings(repetition_penalty=1.0).rules(MODEL) == LogitRules(suppress_tokens=(9,))
    assert GenerationSettings(logit_bias=["3=-5", "4=1e1", "3=2"]).rules(MODEL).logit_bias == ((3, 2.0), (4, 10.0))
    assert GenerationSettings().stops(MODEL) == {2}
    assert GenerationSettings(stop_token_ids=(3, 4)).stops(MODEL) == {2, 3, 4}
    assert GenerationSettings(stop_token_ids=(3,), ignore_eos=True).stops(MODEL) == {3}


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("logit_bias", ("x",), "--logit-bias"),
        ("logit_bias", ["3"], "--logit-bias"),
        ("logit_bias", ["3=nan"], "--logit-bias"),
        ("logit_bias", ["3=101"], "--logit-bias"),
        ("logit_bias", ["50=1"], "--logit-bias"),
        ("logit_bias", ["-1=1"], "--logit-bias"),
        ("logit_bias", ["9" * 5000 + "=1"], "--logit-bias"),
        ("repetition_penalty", float("nan"), "--repetition-penalty"),
        ("frequency_penalty", 3.0, "--frequency-penalty"),
        ("presence_penalty", float("inf"), "--presence-penalty"),
        ("min_tokens", -1, "--min-tokens"),
        ("stop_token_ids", (50,), "--stop-token-ids"),
        ("stop_token_ids", (-1,), "--stop-token-ids"),
    ],
)
def test_wrong_values_name_the_option(name, value, named):
    with pytest.raises(InputError, match=named):
        asked = GenerationSettings(**{name: value})
        asked.rules(MODEL)
        asked.stops(MODEL)


def test_pairs_and_counts():
    assert template_variables(["a=true", 'b="x=y"', "c={}"]) == {"a": True, "b": "x=y", "c": {}}
    for wrong in ("a", "a=", "=1", "a=yes", "a={", "a=" + "[" * 100000):
        with pytest.raises(InputError, match="--template-variable must be NAME=JSON"):
            template_variables([wrong])
    for most, least in ((0, None), (5, 6), (-1, 0)):
        with pytest.raises(InputError, match="-tokens"):
            GenerationSettings(max_tokens=most, min_tokens=least)


def test_run_and_chat_keep_prompts_between_starts(served_folder, tmp_path):
    text, kept = "Once upon a time there was a house. " * 20, tmp_path / "kept"
    options = ("--prompt", text, "--max-tokens", 5, "--json", "--prompt-cache", kept)
    first, second = (json.loads(command("run", served_folder, *options).stdout) for _ in range(2))
    assert first["token_ids"] == second["token_ids"] and list(kept.glob("*.part"))
    chat = ("chat", served_folder, "--prompt-cache", tmp_path / "talk", "--max-tokens", 5, "--system", text)
    talks = [command(*chat, text="Hello\nAnd then?\n").stdout for _ in range(2)]
    assert talks[0] == talks[1] and list((tmp_path / "talk").glob("*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt-cache-size", "none"), "--prompt-cache-size must be a size such as 6GB or 500MB, not 'none'"),
        (("--prompt-cache", "x", "--activations", "float32"), "--prompt-cache needs the compiled engine"),
        (("--prompt-cache", "/dev/null"), "--prompt-cache /dev/null: File exists"),
    ],
)
def test_a_prompt_cache_that_cannot_be_is_refused(served_folder, options, message):
    done = command("run", served_folder, *options)
    assert done.exit_code == 2 and message in done.output and len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize(("asked", "there", "used"), [("auto", False, "off"), ("auto", True, "auto"), ("3", False, "3"),
                                                      ("off", True, "off")])  # fmt: skip
def test_guesses_wait_for_their_kernels(monkeypatch, asked, there, used):
    monkeypatch.setattr("runtime_py.engine.objects.store.has", lambda maker: there)
    assert guesses(asked) == used
    with pytest.raises(InputError, match="--speculate must be"):
        guesses("many")


def test_a_prompt_cache_without_a_model_that_generates_is_refused(served_folder, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(served_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, TASK: EMBEDDING}))
    done = command("serve", folder, "--port", 0, "--prompt-cache", tmp_path / "kept")
    assert done.exit_code == 2 and "--prompt-cache is for models that generate text" in done.output
    assert not (tmp_path / "kept").exists()
