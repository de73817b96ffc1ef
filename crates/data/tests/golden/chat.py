"""Writes chat.json: what transformers' apply_chat_template makes of chats. Run it with transformers installed: python chat.py"""

import json
import pathlib

import jinja2
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    # Turns between markers, a system message of the template's own where there is none.
    "chatml": """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nAnswer in one sentence.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if message.role not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('a ' ~ message.role ~ ' does not take part') }}
    {% endif %}
    {% generation %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}
    {% endgeneration %}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    # Pairs of question and answer; a system message goes into the first question.
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'].strip() %}\
{% set turns = messages[1:] %}{% else %}{% set system = false %}{% set turns = messages %}{% endif %}\
{% for turn in turns %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('question and answer take turns') }}{% endif %}\
{% if loop.first and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + turn['content'].strip() %}\
{% else %}{% set content = turn['content'].strip() %}{% endif %}\
{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}\
{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}""",
    # Begins once, keeps the last system message, counts its turns; tools and unknown keys may be there or not.
    "mistral": """{{- bos_token }}
{%- set state = namespace(system='', turns=0) %}
{%- for message in messages if message.role == 'system' %}
    {%- set state.system = message.content %}
{%- endfor %}
{%- if tools is defined and tools is not none %}
    {{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if state.turns == 4 %}{% break %}{% endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (state.system ~ '\\n\\n' if loop.last and state.system else '') + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content.rstrip() ~ eos_token }}
    {%- else %}
        {{- raise_exception('role ' + message.role + ' is unknown') }}
    {%- endif %}
    {%- set state.turns = state.turns + 1 %}
{%- endfor %}
""",
    # Whatever else templates do: macros, Python's methods, JSON, slices, filters, tests.
    "all sorts": """{%- macro line(name, text) -%}
{{ name.upper() }}: {{ text | replace('\\n', ' / ') }}
{% endmacro -%}
{# nobody sees this #}
{%- for message in messages[::-1] %}
{{ line(message['role'], message.content) }}
  {%- if message.content.startswith('{') and message.content.endswith('}') %} [object]
  {% elif 'tide' in message.content %} [tide x {{ message.content.split('tide') | length - 1 }}]
  {% else %} [{{ message.content.split(' ')[0].title() }}|{{ message.content | length }}]
  {% endif %}
  {%- for key, value in message.items() %}{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}{% endfor %}

{% endfor %}
{{- messages | tojson }}
{{ messages[0] | tojson(indent=2) }}
{{ messages | map(attribute='role') | join('>') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ unknown_name }}{{ messages[-1].get('name', 'nobody') }} {{ messages[0].tool_calls is defined }} {{ bos_token is defined }}
{{- ' end' if add_generation_prompt else ' open' -}}
""",
}

CHATS = {
    "question": [{"role": "user", "content": "What pulls the tide?"}],
    "system": [
        {"role": "system", "content": "  You are a <harbour> pilot & careful. "},
        {"role": "user", "content": "When is high tide?\n\nIs the tide late?"},
    ],
    "turns": [
        {"role": "user", "content": "Grüße aus Köln 👋🏽, \"quoted\" and \\back"},
        {"role": "assistant", "content": "{\"reply\": 'hello'}  "},
        {"role": "user", "content": " and then? "},
    ],
    "answered": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2\n"},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "3"},
    ],
    "stranger": [{"role": "user", "content": "Hello?"}, {"role": "narrator", "content": "Nobody answers."}],
}


def main():
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    cases = []
    for template, source in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        tokenizer.chat_template = source
        for chat, messages in CHATS.items():
            for prompt in [False, True]:
                case = {"template": template, "chat": chat, "add_generation_prompt": prompt}
                try:
                    case["text"] = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
                except jinja2.exceptions.TemplateError as error:
                    case["error"] = str(error)
                cases.append(case)
    golden = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "templates": TEMPLATES,
        "chats": CHATS,
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("chat.json")
    path.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
