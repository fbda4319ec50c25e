"""What is fuzzed: each target takes bytes, treats them as one file of a folder, and uses it as the product does.

A target may raise InputError or NotFiniteError; anything else is a finding. Seeds are the real files.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import AttributeProto, ModelProto

from export.contract.errors import InputError, NotFiniteError
from tests.conftest import DEMO
from tests.fuzz.kept import FILE, prompt_folder, use_prompt_cache

if TYPE_CHECKING:
    from runtime_py.structured.compiler import Compiler
    from runtime_py.structured.forms import Form

WORK = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")


class Target:
    """One file of a folder under attack."""

    def __init__(self, name: str, folder: Path, filename: str, use: Callable[[Path], object]) -> None:
        self.name, self.folder, self.filename, self._use = name, folder, filename, use
        self.seed = (folder / filename).read_bytes()
        self.refusal = ""  # why the last refused input was

    def __call__(self, data: bytes) -> bool:
        """Whether the file was accepted. Raises what the product raises but those two."""
        (self.folder / self.filename).write_bytes(data)
        try:
            self._use(self.folder)
        except (InputError, NotFiniteError) as error:
            if "\n" in str(error):
                raise AssertionError(f"an error of several lines: {error}") from error
            self.refusal = str(error)
            return False
        return True


def use_model(folder: Path) -> None:
    """Open and run: a prompt, then a token. Both runners, because the interpreter takes what the engine refuses."""
    from runtime_py.load import open_model

    for activations in ("int8", "float32"):
        runner, _ = open_model(folder, activations, threads=1, mapped=True)
        state = runner.new_state()
        runner.forward(state, [1, 2, 3], last_only=True)
        runner.forward(state, [4], last_only=True)


def use_razored(folder: Path) -> None:
    """A model that computes on integers, run and costed."""
    use_model(folder)
    use_cost(folder)


def use_vectors(folder: Path) -> None:
    """A model of vector or trellis codes, run, costed and lowered."""
    use_razored(folder)
    use_lower(folder)


def use_encoder(folder: Path) -> None:
    """Open an encoder and make a vector."""
    from runtime_py.text.encoder import TextEncoder

    TextEncoder(folder).embed_ids([1, 2, 3])


def use_adapter(folder: Path) -> None:
    """A LoRA folder of PEFT made an adapter of the model beside it, and run."""
    from export.adapters.store import adapter_names, remove_adapter
    from toolchain.adapters.adding import add_adapter

    model = folder / "model"
    if adapter_names(model):
        remove_adapter(model, "x")
    add_adapter(model, "x", folder)
    use_adapted(model)


def use_adapted(folder: Path) -> None:
    """A model with an adapter, by both runners."""
    from runtime_py.load import open_model

    for activations in ("int8", "float32"):
        runner, _ = open_model(folder, activations, threads=1, mapped=True, adapters=None)
        state = runner.new_state()
        runner.adapt(state, "x")
        runner.forward(state, [1, 2, 3], last_only=True)
        runner.forward(state, [4], last_only=True)


def use_bottleneck(folder: Path) -> None:
    """A folder of the package `adapters` made an adapter of the encoder beside it, and run."""
    from export.adapters.store import adapter_names, remove_adapter
    from toolchain.adapters.adding import add_adapter

    model = folder / "model"
    if adapter_names(model):
        remove_adapter(model, "x")
    add_adapter(model, "x", folder)
    use_adapted_encoder(model)


def use_adapted_encoder(folder: Path) -> None:
    """An encoder with an adapter, by both runners."""
    from runtime_py.text.encoder import TextEncoder

    for activations in ("int8", "float32"):
        TextEncoder(folder, activations, threads=1, adapters=["x"]).embed_ids([1, 2, 3])


def use_pickle(folder: Path) -> None:
    """A pickle of torch, read by a process of its own."""
    from toolchain.adapters.pickled import read_pickled

    read_pickled(folder / "pytorch_adapter.bin", folder)


def use_lower(folder: Path) -> None:
    """What `lower` reads and writes."""
    from export.lowering.folder import Lowering, write_lowered_folder

    out = folder.with_name(f"{folder.name}-lowered")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    write_lowered_folder(folder, out, Lowering("fuzz", ("group_query_attention", "matmul_nbits"), check=False))


def use_families(folder: Path) -> None:
    """config.json of every family in one file."""
    from export.files.access import read_json
    from export.graph.archs import model_spec
    from toolchain.source.config import resolved_config

    configs = read_json(folder / "families.json").get("configs")
    for config in configs if isinstance(configs, list) else []:
        try:
            if isinstance(config, dict):
                spec = model_spec(resolved_config(config, folder / "families.json"))
                _ = spec.outside(), spec.blocks, [spec.window(i) for i in range(min(spec.layers, 100))]
        except InputError as error:
            if "\n" in str(error):
                raise AssertionError(f"an error of several lines: {error}") from error


def use_cost(folder: Path) -> None:
    """What `cost` and `inspect` read."""
    from hw_model.estimate import estimate

    estimate(folder, ["rpi5"], "decode", 64)


def use_source(folder: Path) -> None:
    """What `quantize` reads of a Hugging Face checkpoint."""
    from toolchain.source.checkpoint import SourceModel

    source = SourceModel(folder)
    source.fingerprint()
    for name in source.names()[:40]:
        source.tensor(name)


def use_checkpoint(folder: Path) -> None:
    """What `package` reads of a quantized checkpoint."""
    from export.artefacts.checkpoint import QuantizedCheckpoint
    from export.graph.integers import IntegerArithmetic

    checkpoint = QuantizedCheckpoint(folder)
    IntegerArithmetic.from_manifest(checkpoint.manifest)
    for record in checkpoint.records.values():
        if not record.is_dense:
            record.matrix_layout()


def use_json(folder: Path) -> None:
    """Every reader of the small JSON files."""
    from export.artefacts.chat_templates import read_templates
    from export.files.access import MANIFEST, read_json
    from export.graph.archs import model_spec
    from runtime_py.text.generator import context_length, default_sampling, stop_tokens
    from runtime_py.text.special_tokens import read_special_tokens

    for step in (
        lambda: stop_tokens(folder),
        lambda: context_length(folder),
        lambda: default_sampling(folder, None, None, None, 0),
        lambda: read_special_tokens(folder),
        lambda: read_templates(folder),
        lambda: read_json(folder / MANIFEST),
        lambda: model_spec(read_json(folder / "config.json")),
    ):
        try:
            step()
        except InputError as error:
            if "\n" in str(error):
                raise AssertionError(f"an error of several lines: {error}") from error


def use_request(folder: Path) -> None:
    """A chat request: its fields, tools and forms, and the grammar that they make, compiled."""
    from runtime_py.chat.template import PlainTemplate
    from runtime_py.serving.requests import schema
    from runtime_py.serving.requests.errors import ApiError
    from runtime_py.serving.requests.messages import messages, template_variables
    from runtime_py.serving.requests.tools import tool_use
    from runtime_py.serving.shell import json_object
    from runtime_py.structured import forms
    from runtime_py.text.logit_processors import NEUTRAL
    from runtime_py.tool_calls.formats.registry import FORMATS
    from runtime_py.tool_calls.notation import Asked, Marks

    try:
        body = json_object((folder / "request.json").read_bytes())
        options = schema.options(body, schema.Served("m", 1536, NEUTRAL, False, 68), True, None)
        use, told = tool_use(body), messages(body)
        template_variables(body)
    except ApiError as error:
        json.dumps(error.body(), ensure_ascii=False).encode()
        raise InputError(error.message) from None
    for kind in FORMATS if use.tools else ():
        notation = kind("</think>")
        prepared, _ = notation.prepared(told, use.tools)
        PlainTemplate().render([{**message, "content": message["content"] or ""} for message in prepared])
        rules = notation.rules(Asked(use.tools, use.forced, use.several), Marks({}), False)
        use_form(forms.lark(rules, "tools"))
    if options.form is not None:
        use_form(options.form)


def use_responses(folder: Path) -> None:
    """A request of the Responses API as a chat, and what it says of its own when the chat is refused."""
    from runtime_py.serving.requests import schema
    from runtime_py.serving.requests.errors import ApiError
    from runtime_py.serving.requests.messages import messages, template_variables
    from runtime_py.serving.requests.responses import as_chat
    from runtime_py.serving.requests.tools import tool_use
    from runtime_py.serving.shell import json_object
    from runtime_py.text.logit_processors import NEUTRAL

    try:
        asked = as_chat(json_object((folder / "responses.json").read_bytes()), False)
        try:
            schema.options(asked.chat, schema.Served("m", 1536, NEUTRAL, False, 68), True, None)
            assert len(messages(asked.chat)) == len(asked.places)
            tool_use(asked.chat)
            template_variables(asked.chat)
        except ApiError as error:
            raise asked.renamed(error) from None
    except ApiError as error:
        json.dumps(error.body(), ensure_ascii=False).encode()
        raise InputError(error.message) from None


def use_rerank(folder: Path) -> None:
    """A request for a ranking."""
    from runtime_py.serving.requests.errors import ApiError
    from runtime_py.serving.requests.ranking import ranking
    from runtime_py.serving.shell import json_object

    try:
        found = ranking(json_object((folder / "rerank.json").read_bytes()), False)
    except ApiError as error:
        json.dumps(error.body(), ensure_ascii=False).encode()
        raise InputError(error.message) from None
    assert found.most >= 1 and "\n".join([found.query, *found.documents]).encode()


def use_grammar(folder: Path) -> None:
    """A grammar, as Lark or GBNF, and as an expression."""
    from runtime_py.structured import forms

    text = (folder / "grammar.txt").read_text(encoding="utf-8", errors="surrogateescape")
    refused = []
    for make in (forms.grammar, forms.regex):
        try:
            use_form(make(text, "the field"))
        except InputError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]


def use_form(form: Form) -> None:
    """Compile a form, and draw a token under it."""
    import numpy as np

    constraint = compiler().compile(form).constraint(frozenset([0]))
    token = int(np.argmax(constraint.apply(np.zeros(1536, np.float32))))
    if token:
        constraint.note(token)


@cache
def compiler() -> Compiler:
    """One for all inputs: its process is what they may not get down for good."""
    from runtime_py.structured.compiler import Compiler
    from runtime_py.text.generator import load_tokenizer

    return Compiler(load_tokenizer(DEMO), 1536)


_RESPONSES = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Once"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "upon", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "add", "arguments": "{\"a\": 1}"},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ],
    "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    "include": ["message.output_text.logprobs"], "top_logprobs": 1, "max_output_tokens": 5, "temperature": 0.5,
    "stream": True, "metadata": {"a": "b"}, "store": False, "seed": 1,
}  # fmt: skip
_RERANK = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}


def request_folder(folder: Path) -> Path:
    """A request with all that holds an answer to something, and a grammar."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": ["integer", "null"], "minimum": 1},
                       "deep": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/one"}}},
        "required": ["city"],
        "$defs": {"one": {"anyOf": [{"const": 1}, {"type": "object", "properties": {"a": {"type": "boolean"}}}]}},
    }  # fmt: skip
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    request = {
        "model": "m",
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": parameters, "strict": False}}],
        "tool_choice": "required",
        "parallel_tool_calls": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": parameters}},
    }
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "responses.json").write_text(json.dumps(_RESPONSES))
    (folder / "rerank.json").write_text(json.dumps(_RERANK))
    grammar = 'start: sum | "(" start ")"\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]{1,4}/ & ~/0+/\n%ignore / +/\n'
    (folder / "grammar.txt").write_text(grammar)
    return folder


def make_folders(root: Path) -> dict[str, Target]:
    """The targets over small real folders: a random llama, exported, and the demo model's files."""
    from toolchain.pipeline.packaging import package_checkpoint
    from toolchain.pipeline.run import CalibrationChoice, quantize_model
    from toolchain.settings.quantize import QuantizeSettings
    from toolchain.settings.razor import RazorSettings

    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    source = tiny_llama(root / "source")
    settings = QuantizeSettings(bits=3, method="rtn", sequences=2, sequence_length=16, rank=2)
    checkpoint = quantize_model(str(source), root / "checkpoint", settings, CalibrationChoice(), quiet=True)
    built = package_checkpoint(checkpoint, root / "model", quiet=True)
    built.rename(root / "model")

    def copy(folder: Path, name: str) -> Path:
        shutil.copytree(folder, root / name)
        return root / name

    model = root / "model"
    razor = RazorSettings(activation_bits=4, kv=4)
    settings = QuantizeSettings(method="qrazor", bits=4, sequences=2, sequence_length=16, razor=razor)
    checkpoint = quantize_model(str(source), root / "razored-checkpoint", settings, CalibrationChoice(), quiet=True)
    package_checkpoint(checkpoint, root / "razored-built", quiet=True).rename(root / "razored")
    razor = RazorSettings(activation_bits=4, activation_groups=14)
    settings = QuantizeSettings(method="tender", bits=4, sequences=2, sequence_length=16, razor=razor)
    checkpoint = quantize_model(str(source), root / "tender-checkpoint", settings, CalibrationChoice(), quiet=True)
    package_checkpoint(checkpoint, root / "tender-built", quiet=True).rename(root / "tender")
    settings = QuantizeSettings(method="aqlm", bits=2, passes=1, sequences=2, sequence_length=16)
    checkpoint = quantize_model(str(source), root / "vectors-checkpoint", settings, CalibrationChoice(), quiet=True)
    package_checkpoint(checkpoint, root / "vectors-built", quiet=True).rename(root / "vectors")
    settings = QuantizeSettings(bits=2, format="trellis", outliers=0.02, passes=1, sequences=2, sequence_length=16)
    checkpoint = quantize_model(str(source), root / "trellis-checkpoint", settings, CalibrationChoice(), quiet=True)
    package_checkpoint(checkpoint, root / "trellis-built", quiet=True).rename(root / "trellis")
    bert = tiny_bert(root)
    adapted_bert, hub = bottleneck_folders(copy(bert, "adapted-bert"), copy(bert, "hub/model"))
    adapted, lora = adapter_folders(copy(model, "adapted"), copy(model, "lora/model"))
    targets = [
        Target("model", copy(model, "model-a"), "model.onnx", use_model),
        Target("cost", copy(model, "model-b"), "model.onnx", use_cost),
        Target("razored", root / "razored", "model.onnx", use_razored),
        Target("tender", root / "tender", "model.onnx", use_razored),
        Target("tender-manifest", root / "tender-checkpoint", "athena.json", use_checkpoint),
        Target("vectors", root / "vectors", "model.onnx", use_vectors),
        Target("trellis", root / "trellis", "model.onnx", use_vectors),
        Target("trellis-manifest", root / "trellis-checkpoint", "athena.json", use_checkpoint),
        Target("experts", tiny_mixture(root), "model.onnx", use_vectors),
        Target("encoder", bert, "model.onnx", use_encoder),
        Target("lower", copy(model, "model-d"), "model.onnx", use_lower),
        Target("families", family_configs(root / "families"), "families.json", use_families),
        Target("weights", copy(model, "model-c"), "model.onnx.data", use_model),
        Target("safetensors", copy(source, "source-a"), "model.safetensors", use_source),
        Target("shard", copy(root / "checkpoint", "checkpoint-a"), "block-00000.safetensors", use_checkpoint),
        Target("razored-manifest", root / "razored-checkpoint", "athena.json", use_checkpoint),
        Target("manifest", copy(root / "checkpoint", "checkpoint-b"), "athena.json", use_checkpoint),
        Target("config", copy(model, "json-a"), "config.json", use_json),
        Target("generation", copy(model, "json-b"), "generation_config.json", use_json),
        Target("tokenizer-config", copy(model, "json-c"), "tokenizer_config.json", use_json),
        Target("adapter-config", lora, "adapter_config.json", use_adapter),
        Target("adapter-weights", lora, "adapter_model.safetensors", use_adapter),
        Target("adapter-record", adapted, "adapters/x/adapter.json", use_adapted),
        Target("adapter-factors", adapted, "adapters/x/adapter.safetensors", use_adapted),
        Target("bottleneck-config", hub, "adapter_config.json", use_bottleneck),
        Target("bottleneck-weights", hub, "adapter.safetensors", use_bottleneck),
        Target("bottleneck-pickle", hub, "pytorch_adapter.bin", use_pickle),
        Target("bottleneck-record", adapted_bert, "adapters/x/adapter.json", use_adapted_encoder),
        Target("bottleneck-factors", adapted_bert, "adapters/x/adapter.safetensors", use_adapted_encoder),
        Target("request", request_folder(root / "request"), "request.json", use_request),
        Target("grammar", root / "request", "grammar.txt", use_grammar),
        Target("prompt-cache", prompt_folder(copy(model, "model-e"), root / "prompts"), FILE, use_prompt_cache),
        Target("responses", root / "request", "responses.json", use_responses),
        Target("rerank", root / "request", "rerank.json", use_rerank),
    ]
    return {target.name: target for target in targets}


def adapter_folders(adapted: Path, beside: Path) -> tuple[Path, Path]:
    """A model folder with the adapter x, and a LoRA folder with a model in it."""
    from tests.peft_folders import random_pairs, write_peft
    from toolchain.adapters.adding import add_adapter, sites_of

    pairs = random_pairs(sites_of(adapted), 2, only="_proj")
    lora = write_peft(beside.parent, pairs, r=2, alpha_pattern={r".*q_.*": 4})
    add_adapter(adapted, "x", lora, 8)
    return adapted, lora


def bottleneck_folders(adapted: Path, beside: Path) -> tuple[Path, Path]:
    """An encoder's folder with the adapter x, and a bottleneck folder with a model in it."""
    import torch

    from export.adapters.bottleneck import bottleneck_sites
    from export.artefacts.reader import read_graph
    from tests.hub_folders import random_tensors, write_hub
    from toolchain.adapters.adding import add_adapter

    sites = {site.module: site for site in bottleneck_sites(read_graph(adapted))}
    parents = [module.removesuffix(".dense") for module in sites if ".attention." not in module]
    width = next(iter(sites.values())).rows
    tensors = random_tensors(parents, width, max(width // 16, 1))
    hub = write_hub(beside.parent, tensors)
    add_adapter(adapted, "x", hub, 8)
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, hub / "pytorch_adapter.bin")
    return adapted, hub


def tiny_bert(root: Path) -> Path:
    """The model folder of a random bert."""
    from export.model_folder import write_model_folder
    from tests.export.graph.families import FloatCheckpoint, tiny_model

    tiny_model("bert", root / "bert-source")
    (root / "bert").mkdir()
    write_model_folder(FloatCheckpoint(root / "bert-source"), root / "bert")
    shutil.copyfile(root / "bert-source" / "tokenizer.json", root / "bert" / "tokenizer.json")
    return root / "bert"


def tiny_mixture(root: Path) -> Path:
    """The model folder of a random OLMoE in random codes."""
    from unittest import mock

    from tests.export.graph.families import COMMON, TINY
    from toolchain.pipeline.published_shapes import SHAPES
    from toolchain.pipeline.random import write_random_folder
    from toolchain.settings.quantize import QuantizeSettings

    with mock.patch.dict(SHAPES, {"tiny": {**COMMON, **TINY["olmoe"], "model_type": "olmoe"}}):
        write_random_folder("tiny", root / "experts", QuantizeSettings(bits=4), force=False, quiet=True)
    return root / "experts"


def family_configs(folder: Path) -> Path:
    """The configurations of all tiny models."""
    from transformers import AutoConfig

    from tests.export.graph.families import COMMON, TINY, TINY_ENCODERS

    found = []
    for variant, fields in {**TINY, **TINY_ENCODERS}.items():
        model_type = variant.split()[0]
        common = {} if model_type == "gpt2" else COMMON
        found.append({**AutoConfig.for_model(model_type, **{**common, **fields}).to_dict(), "model_type": model_type})
    folder.mkdir()
    (folder / "families.json").write_text(json.dumps({"configs": found}))
    return folder


def tiny_llama(folder: Path) -> Path:
    """A random llama of two small layers with the demo model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1536, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    return folder


def mutate(target: Target, data: bytes, random_: random.Random) -> bytes:
    """A neighbour of `data`: one to four changes, to the bytes or to what they mean."""
    for _ in range(random_.choice((1, 1, 2, 4))):
        structured = {"model.onnx": _change_model, ".json": _change_json}
        change = next((f for end, f in structured.items() if target.filename.endswith(end)), None)
        if target.filename.endswith(".safetensors") and random_.random() < 0.6:
            data = _change_header(data, random_)
        elif change is not None and random_.random() < 0.75:
            data = change(data, random_)
        else:
            data = _change_bytes(data, random_)
    return data


_NUMBERS = (0, -1, 1, 2, 3, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))


def _change_bytes(data: bytes, random_: random.Random) -> bytes:
    kind, at = random_.randrange(5), random_.randrange(len(data) + 1)
    if kind == 0 and data:
        return data[: at - 1] + bytes([random_.randrange(256)]) + data[at:]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + random_.randbytes(random_.randrange(1, 64)) + data[at:]
    end = min(at + random_.randrange(1, 64), len(data))
    if kind == 3:
        return data[:at] + data[end:]
    return data[:at] + data[at:end] * random_.randrange(2, 5) + data[end:]


def _change_model(data: bytes, random_: random.Random) -> bytes:
    model = ModelProto()
    try:
        model.ParseFromString(data)
        _change_graph(model, random_)
        return model.SerializeToString()
    except Exception:  # bytes that were no model before, or names that are not text
        return _change_bytes(data, random_)


def _change_graph(model: ModelProto, random_: random.Random) -> None:
    graph, kind = model.graph, random_.randrange(9)
    if kind <= 2 and graph.node:
        node = random_.choice(graph.node)
        if kind == 0 and node.attribute:
            _change_attribute(random_.choice(node.attribute), random_)
        elif kind == 1 and node.input:
            names = [i.name for i in graph.initializer] + [o for n in graph.node for o in n.output]
            node.input[random_.randrange(len(node.input))] = random_.choice([*names, "", "nothing"])
        else:
            node.op_type = random_.choice([*{n.op_type for n in graph.node}, "Loop", "Foo"])
    elif kind == 3 and graph.node:
        del graph.node[random_.randrange(len(graph.node))]
    elif kind == 4 and graph.node:
        graph.node.insert(random_.randrange(len(graph.node)), random_.choice(graph.node))
    elif kind == 5 and graph.initializer:
        tensor = random_.choice(graph.initializer)
        if tensor.dims and random_.random() < 0.6:
            tensor.dims[random_.randrange(len(tensor.dims))] = random_.choice(_NUMBERS)
        elif random_.random() < 0.5:
            tensor.data_type = random_.randrange(0, 30)
        elif tensor.external_data:
            entry = random_.choice(tensor.external_data)
            entry.value = random_.choice([str(random_.choice(_NUMBERS)), "../x", "/etc/passwd", "", "\0", "model.onnx"])
    elif kind == 6 and graph.initializer:
        tensor = random_.choice(graph.initializer)
        if tensor.raw_data:
            tensor.raw_data = _change_bytes(tensor.raw_data, random_)
    elif kind == 7 and (graph.input or graph.output):
        info = random_.choice([*graph.input, *graph.output])
        dims = info.type.tensor_type.shape.dim
        if dims:
            random_.choice(dims).dim_value = random_.choice(_NUMBERS)
    elif graph.node:
        node = random_.choice(graph.node)
        if node.output:
            node.output[0] = random_.choice([o for n in graph.node for o in n.output])


def _change_attribute(attribute: AttributeProto, random_: random.Random) -> None:
    if random_.random() < 0.2:
        attribute.name = random_.choice(["axis", "bits", "K", "N", "perm", "to", "nothing"])
    elif attribute.type == AttributeProto.INT:
        attribute.i = random_.choice([*_NUMBERS, attribute.i + 1, attribute.i - 1, 2 * attribute.i % 2**62])
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = random_.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])
    elif attribute.ints:
        attribute.ints[random_.randrange(len(attribute.ints))] = random_.choice(_NUMBERS)
    else:
        attribute.type = random_.choice([AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING])


_VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1, 3, 2**31, 2**63, 1e308, float("nan"), "", "x", "silu", [], [1], [[]], {}, {"a": 1}, [None],
    "\ud800",
)  # fmt: skip


_KEYS = ("rope_scaling", "rope_parameters", "head_dim", "model_type", "x", "pattern", "allOf", "$ref", "enum", "items",
         "regex", "grammar", "not", "format", "multipleOf", "patternProperties", "x-guidance")  # fmt: skip


def _change_json(data: bytes, random_: random.Random) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _change_bytes(data, random_)
    return json.dumps(_changed(value, random_)).encode()


def _changed(value: object, random_: random.Random) -> object:
    if isinstance(value, dict) and value and random_.random() < 0.85:
        key, kind = random_.choice([*value]), random_.randrange(4)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {
                **value,
                random_.choice(_KEYS): random_.choice(
                    [*_VALUES, {"rope_type": "llama3"}, {"rope_type": "linear", "factor": 0}, "gpt2"]
                ),
            }
        return {**value, key: _changed(value[key], random_)}
    if isinstance(value, list) and value and random_.random() < 0.7:
        at = random_.randrange(len(value))
        return [*value[:at], _changed(value[at], random_), *value[at + 1 :]]
    return random_.choice(_VALUES)


def _change_header(data: bytes, random_: random.Random) -> bytes:
    """Change the JSON header of a safetensors file, keeping its length field right three times of four."""
    size = int.from_bytes(data[:8], "little")
    header = _change_json(data[8 : 8 + size], random_) if 0 < size <= len(data) else b"{}"
    length = len(header) if random_.random() < 0.75 else random_.choice(_NUMBERS) % 2**64
    return length.to_bytes(8, "little") + header + data[8 + size :]
