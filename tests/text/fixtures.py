"""Small tokenizers of every kind that is supported, made on the spot, and chat templates in the families' styles."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?\n\n  def f(x):\n    return x + 1\n",
    "你好，世界！今天天气很好，我们去公园散步吧。模型的记忆是有限的。",
    "Ünïcödé wörds, naïve café, “quotes” — dashes… ½ ± µ",
    "नमस्ते दुनिया 👋🏽 👩‍👩‍👧 emoji 😀😃😄",
] * 3
SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_level() -> Tokenizer:
    """Byte-level BPE as GLM-4, Qwen and Llama-3 have it: special tokens behind the vocabulary, one that is not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("世界线", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))]
    )
    return tokenizer


def sentencepiece(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """BPE over ▁-words with bytes to fall back to, as Llama-2 and Mistral have it."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(CORPUS[:1], trainers.BpeTrainer(vocab_size=120, show_progress=False))
    state = json.loads(trained.to_str())
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *state["model"]["vocab"]]
    merges = [tuple(merge) for merge in state["model"]["merges"]]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoder or decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def all_decoders() -> dict[str, Tokenizer]:
    """A tokenizer for every decoder that can be followed token by token."""
    replace, fuse, fallback = decoders.Replace("▁", " "), decoders.Fuse(), decoders.ByteFallback()
    joined = sentencepiece()
    joined.decoder = None
    return {
        "byte level": byte_level(),
        "llama": sentencepiece(),
        "no strip": sentencepiece(decoders.Sequence([replace, fallback, fuse])),
        "strip three": sentencepiece(decoders.Sequence([replace, fallback, fuse, decoders.Strip(" ", 3, 0)])),
        "strip each token": sentencepiece(decoders.Sequence([decoders.Strip("▁", 1, 0), fallback])),
        "metaspace": sentencepiece(decoders.Metaspace()),
        "metaspace never": sentencepiece(decoders.Metaspace(prepend_scheme="never")),
        "metaspace with bytes": sentencepiece(decoders.Sequence([fallback, decoders.Metaspace()])),
        "replace behind fuse": sentencepiece(decoders.Sequence([fallback, fuse, replace])),
        "none": joined,
    }


def unsupported_decoders() -> dict[str, Tokenizer]:
    """Decoders that cannot be followed exactly."""
    return {
        "WordPiece": sentencepiece(decoders.WordPiece()),
        "regular expression": sentencepiece(decoders.Sequence([decoders.Replace(Regex("a+"), "b")])),
        "CTC": sentencepiece(decoders.CTC()),
    }


def write_tokenizer(directory: Path, tokenizer: Tokenizer, config: dict[str, object] | None = None) -> Path:
    """Write tokenizer.json, and tokenizer_config.json where one is given."""
    tokenizer.save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


# Written for these tests in the manner of each family.
TEMPLATES = {
    "glm4": (
        "[gMASK]<sop>\n"
        "{%- if tools -%}\n<|system|>\n# Tools\n"
        "{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}\n{% endfor %}\n{%- endif -%}\n"
        "{%- for message in messages -%}\n"
        "  {%- if message.role == 'system' %}\n<|system|>\n{{ message.content }}\n"
        "  {%- elif message.role == 'user' %}\n<|user|>\n{{ message.content }}\n"
        "  {%- elif message.role == 'assistant' %}\n<|assistant|>\n"
        "{% generation %}{{ message.content }}{% endgeneration %}\n"
        "  {%- else %}\n{% continue %}\n{%- endif -%}\n"
        "{%- endfor -%}\n"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "llama3": (
        "{{- bos_token }}\n"
        "{%- if not date_string is defined %}\n    {%- set date_string = '26 Jul 2024' %}\n{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
        "{{- 'Today Date: ' + date_string + '\\n\\n' }}\n{{- system_message }}\n{{- '<|eot_id|>' }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim "
        "+ '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "qwen3": (
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n"
        "    {{- '# Tools\\n<tools>' }}\n"
        "    {%- for tool in tools %}\n        {{- '\\n' }}\n        {{- tool | tojson }}\n    {%- endfor %}\n"
        "    {{- '\\n</tools><|im_end|>\\n' }}\n{%- endif %}\n"
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "    {%- if ns.multi_step_tool and message.role == 'user' and message.content is string %}\n"
        "        {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n"
        "    {%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n"
        "    {%- set content = message.content if message.content is string else '' %}\n"
        "    {%- if message.role == 'assistant' %}\n"
        "        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}\n"
        "        {%- if '</think>' in content %}\n"
        "            {%- set reasoning = content.split('</think>')[0].rstrip('\\n')"
        ".split('<think>')[-1].lstrip('\\n') %}\n"
        "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
        "        {%- if loop.index0 > ns.last_query_index and reasoning %}\n"
        "            {{- '<|im_start|>assistant\\n<think>\\n' + "
        "reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}\n"
        "        {%- else %}\n            {{- '<|im_start|>assistant\\n' + content }}\n        {%- endif %}\n"
        "    {%- else %}\n        {{- '<|im_start|>' + message.role + '\\n' + content }}\n    {%- endif %}\n"
        "    {{- '<|im_end|>\\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
        "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}"
    ),
    "mistral": (
        "{%- if messages[0].role == 'system' %}\n{%- set system = messages[0].content %}\n"
        "{%- set rest = messages[1:] %}\n{%- else %}\n{%- set rest = messages %}\n{%- endif %}\n"
        "{{- bos_token }}\n"
        "{%- for message in rest %}\n"
        "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}\n"
        "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\n{%- endif %}\n"
        "{%- if message.role == 'user' %}\n"
        "{{- '[INST] ' + (system + '\\n\\n' if loop.last and system is defined else '') + "
        "message.content + '[/INST]' }}\n"
        "{%- else %}\n{{- ' ' + message.content | trim + eos_token }}\n{%- endif %}\n{%- endfor %}\n"
    ),
}
