"""Writes methods.json: what expressions of templates are in transformers' Jinja. Run it with transformers installed: python methods.py"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

VALUES = {
    "a": "  one,two ,, three  ",
    "s": "\x1c\t lines\r\nof\x0btext\x85and\u2028more\n\nend \x1f\u3000",
    "t": "<think>\nwell\n</think>\n\nHello </think> you",
    "w": "it's a dog's LIFE in 3-d",
    "e": "",
    "m": {"role": "user", "content": "Grüße", "n": 1.5},
    "l": [1, 2.0, "x", True, None],
    "d": {"b": [1e-05, 1e16, 1e15, 0.1, -2.5e-07, 100.0], "a": {}, "c": [], "ä": "\u2028\x7f\"\\/<>&'"},
}

EXPRESSIONS = [
    "a.strip()", "a.lstrip()", "a.rstrip()", "s.strip()", "s.lstrip()", "s.rstrip()", "a.strip(' o')", "w.rstrip('dE-3')", "a | trim",
    "s | trim", "a | trim(' e')", "none | trim", "3 | trim", "e.strip()",
    "a.split(',')", "a.split()", "s.split()", "a.split(none)", "a.split(',', 1)", "a.split(none, 1)", "a.rsplit(',', 1)", "a.rsplit()",
    "a.rsplit(none, 1)", "e.split()", "e.split(',')", "a.split(',', 0)", "a.split(none, 0)", "t.split('</think>')[-1].lstrip('\\n')",
    "t.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')", "a.split(',')[-1]", "a.split('')",
    "s.splitlines() | join('|')", "s.splitlines(true) | join('|')", "m is sequence", "3 is sequence", "none is sequence", "e.splitlines()", "'a\\n'.splitlines()",
    "t.partition('</think>')", "t.rpartition('</think>')", "t.partition('no')", "t.rpartition('no')", "t.removeprefix('<think>')",
    "t.removesuffix('you')", "t.removesuffix('no')", "t.startswith('<think>')", "t.endswith(('no', 'you'))", "t.find('</think>')",
    "w.title()", "w.upper()", "w.lower()", "w.capitalize()", "w | capitalize", "w.replace('a', 'A')", "w.replace('a', 'A', 1)",
    "t.count('think')", "'-'.join(['a', 'b'])", "['a', 'b'] | join(', ')", "w | length", "w[:4] + w[-1]", "w[::-1]", "w[2]",
    "'think' in t", "'x' not in t", "m.get('name')", "m.get('name', 'nobody')", "m['content']", "m.missing is defined", "m.missing",
    "m.items() | list", "m.keys() | list", "m.values() | list", "m | length", "m is mapping", "l is sequence", "l is iterable",
    "w is string", "w is iterable", "w is sequence", "none is none", "1 is number", "1.5 is float", "1 is integer", "true is boolean",
    "none", "true", "false", "1.0", "2 ** 10", "7 // 2", "-7 // 2", "7 % 3", "-7 % 3", "7 / 2", "'a' ~ 1 ~ none ~ true", "'ab' * 2",
    "[1, 'a', none, true]", "{'a': 1}", "(1, 2)", "l", "m", "l | first", "l | last", "l[1:3]", "l[-1] is none", "l | length",
    "l | tojson", "m | tojson", "d | tojson", "d | tojson(indent=2)", "d | tojson(indent=4, ensure_ascii=false)", "d | tojson(sort_keys=true)",
    "d | tojson(separators=(',', ':'))", "d | tojson(indent=1, separators=(', ', ' : '))", "e | tojson", "none | tojson", "true | tojson",
    "0.1 + 0.2", "100.0", "3 | string + 'x'", "'3' | int + 1", "'x' | default('y')", "nothing | default('y')",
    "e | default('y', true)", "[3, 1, 2] | sort", "['b', 'A'] | sort", "{'b': 1, 'a': 2} | dictsort", "[1, 2, 3] | sum", "[1, 2] | max",
    "['a', 'b'] | map('upper') | list", "[{'a': 1}, {'a': 2}] | map(attribute='a') | list", "[1, 2, 3] | select('odd') | list",
    "[{'r': 'u'}, {'r': 'v'}] | rejectattr('r', 'equalto', 'u') | list", "[1, 2, 1] | unique | list", "range(3) | list",
    "range(1, 8, 3) | list", "w.split() | reverse | list", "w | replace('d', 'D')", "w | title", "w | upper", "'a' < 'b'",
    "1 if e else 2", "e or 'x'", "not e", "1 == 1.0", "'1' == 1", "'{}-{}'.format('a', 3)", "'%05.2f' | format(3.14159)",
    "w | indent(2)", "'a\\nb' | indent", "'a\\nb' | indent(2, true)", "namespace(a=1).a", "dict(a=1)['a']", "w.isdigit()", "'12'.isdigit()",
    "w.islower()", "'a b'.isspace()", "[1, 2] + [3]", "m.role == 'user' and m.content != ''", "[] is defined", "w | safe",
    "[1, 2, 3, 4] | batch(2) | list", "'a' is in ['a']", "2 is divisibleby 2", "l is string", "l.index('x')", "l.index('y')", "w.index('cat')", "t.rindex('you')", "w.index('dog')",
]


def main():
    cases = []
    for expression in EXPRESSIONS:
        try:
            cases.append([expression, _compile_jinja_template("{{ " + expression + " }}").render(**VALUES)])
        except (jinja2.exceptions.TemplateError, TypeError, ValueError) as error:
            cases.append([expression, None])
    golden = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "values": VALUES,
        "cases": cases,
    }
    pathlib.Path(__file__).with_name("methods.json").write_text(json.dumps(golden, indent=0, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
