"""Writes masks.json: what transformers' apply_chat_template makes of chats, as text, tokens and masks of what the assistant
writes. Run it with transformers installed: python masks.py [folder of SmolLM2-135M-Instruct]

Each template is written twice, plain as models have it, and with `{% generation %}` blocks around what an assistant writes and
the end of its turn: the mask of the second is what rows are to have with either."""

import json
import pathlib
import sys

import jinja2
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

# « and » stand for the marks.
TEMPLATES = {
    # Turns between markers, and a system message of the model's own where the chat has none.
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}\
{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}«{{ message['content'] + '<|im_end|>' }}»{{ '\\n' }}\
{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # Headers with the name of a role, contents without the space around them.
    "llama3": """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- « -%}{{ message['content'] | trim + '<|eot_id|>' }}{%- » -%}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # A line for the role, the end token after each content, line ends that lie between tags.
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' }}«{{ message['content'] + eos_token }}»{{ '\\n' }}
{%- endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    # Pairs of question and answer without a beginning of an answer; nobody else takes part.
    "mistral": """{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}«{{ ' ' + message['content'] + eos_token }}»\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    # An end of the turn of its own, and the end token behind the whole chat.
    "ended twice": """{% for message in messages %}{% if message['role'] == 'assistant' %}\
{{ '<|assistant|>\\n' }}«{{ message['content'] + '<|end|>' }}»{{ '\\n' }}\
{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    # Old ones do not know of a beginning of an answer although turns have headers.
    "no prompt": """{% for message in messages %}{% if message.role == 'assistant' %}### assistant: «{{ message.content.strip() }}<|im_end|>»\
{{ '\\n\\n' }}{% else %}### {{ message.role }}: {{ message.content.strip() }}<|im_end|>{{ '\\n\\n' }}{% endif %}{% endfor %}""",
    # Tools, calls of them, and what they answer, several in one turn.
    "tools": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}{%- « %}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}{%- » %}
        {{- '\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    # What is null is not there, and keys stay in their order.
    "nulls": """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- « %}
        {%- if message.content is none or message.content is not defined %}{{ 'calls ' + message.tool_calls | tojson }}{% endif %}
        {{- message.content }}{{ '<|im_end|>' }}{%- » %}
        {{- '\\n' }}
    {%- else %}
        {{- message | tojson ~ ' ' ~ message.name ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
}


def chat(*contents, system=None):
    turns = [{"role": ["user", "assistant"][i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}] * (system is not None) + turns


CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Köln", "days": [1, 2.5], "exact": True}}}
CHATS = {
    "one turn": chat("What pulls the tide?", "The moon."),
    "system": chat("When is high tide?", "At six.", system="You are a harbour pilot."),
    "turns": chat("One?", "1", "Two?", "2", "Three?", "3"),
    "turns with a system": chat("One?", "1.", "Two?", "2.", system="Be short."),
    "open": chat("One?", "1", "And two?"),
    "umlauts": chat("Grüße aus Köln, größer?", "Schöne Grüße zurück – «ja»!"),
    "scripts": chat("你好，潮汐是什么？", "潮汐由月球引起。", "مرحبا", "שלום, नमस्ते"),
    "emoji": chat("👋🏽?", "🌊🌊🌊 👨‍👩‍👧‍👦", "🇩🇪", "é vs é"),
    "space around": chat("  two spaces ", " lead and trail  ", "\ttab\t", "\t\tindented\n    code"),
    "line ends": chat("a\n\nb\n", "\nfirst line is empty\n\n\n", "\n\n", "x\n"),
    "windows": chat("a\r\nb\r\n", "c\r\nd\r\n"),
    "empty answer": chat("Say nothing.", "", "Again.", ""),
    "empty question": chat("", "What?", "", "Nothing."),
    "empty system": chat("Hello", "Hi.", system=""),
    "only space": chat("   ", "  ", "\n", "\t"),
    "quotes": chat("\"quoted\" \\back\\ 'single'", "{\"a\": [1, \"b\"]} {{ not_jinja }} {% no %}"),
    "markers inside": chat("What is <|im_start|>?", "It begins a turn, [/INST] does not. <|end", "### user: hm", "### assistant:"),
    "same again": chat("Echo.", "Echo.", "Echo.", "Echo.", "Echo.", "Echo."),
    "long": chat("tide " * 40, "moon " * 60, "and " * 20, "sun. " * 30),
    "tool": [
        {"role": "user", "content": "Tide in Köln?"},
        {"role": "assistant", "content": "I look it up.", "tool_calls": [CALL]},
        {"role": "tool", "name": "tide", "content": "{\"level\": 3.5}"},
        {"role": "tool", "content": "none"},
        {"role": "assistant", "content": "3.5 m."},
    ],
    "nulls beside": [
        {"content": "Who?", "name": None, "role": "user"},
        {"tool_calls": [CALL], "content": None, "role": "assistant", "a": None},
        {"content": "7", "role": "tool", "tool_calls": None},
        {"tool_calls": [], "content": "7.", "role": "assistant"},
    ],
    "call alone": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Tide?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "7."},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "tide", "description": "Höhe <der> Tide", "parameters":
    {"type": "object", "properties": {"port": {"type": "string"}, "tol": {"default": 1e-05}}, "required": []}}}]


def main():
    here = pathlib.Path(__file__).parent
    tiny = PreTrainedTokenizerFast(tokenizer_file=str(here / "../../../models/tiny/tokenizer.json"),
                                   bos_token="<|im_start|>", eos_token="<|endoftext|>")
    tokenizers = {"tiny": tiny}
    if len(sys.argv) > 1:
        tokenizers["SmolLM2-135M-Instruct"] = AutoTokenizer.from_pretrained(sys.argv[1])
    cases = []
    templates = {}
    for name, source in TEMPLATES.items():
        plain, marked = source, source
        for mark, word, nothing in [("«", "generation", "if true"), ("»", "endgeneration", "endif")]:
            # With signs of its own, or as a tag.
            plain = plain.replace(f"- {mark}", f"- {nothing}").replace(mark, "")
            marked = marked.replace(f"- {mark}", f"- {word}").replace(mark, f"{{% {word} %}}")
        templates[name] = {"plain": plain, "marked": marked}
        for title, messages in CHATS.items():
            tools = TOOLS if name == "tools" and "a" in title else None
            case = {"template": name, "chat": title, "tools": tools is not None}
            for key, tokenizer in tokenizers.items():
                if key != "tiny" and name != "chatml":
                    continue
                arguments = {"tools": tools, "bos_token": tiny.bos_token, "eos_token": tiny.eos_token}
                try:
                    text = tokenizer.apply_chat_template(messages, chat_template=plain, tokenize=False, **arguments)
                    out = tokenizer.apply_chat_template(messages, chat_template=marked, tokenize=True, return_dict=True,
                                                        return_assistant_tokens_mask=True, **arguments)
                    again = tokenizer.apply_chat_template(messages, chat_template=marked, tokenize=False, **arguments)
                    assert text == again, (name, title, text, again)
                    case["text"] = text
                    mask = "".join(map(str, out["assistant_masks"]))
                    case[key] = {"ids": out["input_ids"], "mask": mask}
                except (jinja2.exceptions.TemplateError, TypeError) as error:
                    case["error"] = str(error)
            cases.append(case)
    golden = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "templates": templates,
        "chats": CHATS,
        "tools": TOOLS,
        "cases": cases,
    }
    lines = json.dumps(golden | {"cases": []}, indent=1, ensure_ascii=False).removesuffix("[]\n}")
    rows = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (here / "masks.json").write_text(lines + "[\n  " + rows + "\n ]\n}\n")


if __name__ == "__main__":
    main()
