from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.interfaces.docker.template import Template

DOT: dict[str, Any] = {
    "Id": "abc",
    "State": {"Status": "running", "ExitCode": 0, "Pid": 7},
    "Args": ["a", "b"],
    "Networks": {"x": {"IP": "10.0.0.2"}, "my.net": {"IP": "10.1.0.2"}},
    "Nothing": None,
    "Ratio": 1.5,
    "Label": {"tier": "web"}.get,
}
RENDERED = [
    ("plain", "plain"),
    ("{{.ID}} {{.Id}}", "abc abc"),
    ("{{.State.Status}}:{{.State.Pid}}", "running:7"),
    ("{{json .State}}", '{"Status":"running","ExitCode":0,"Pid":7}'),
    ("{{.State}}", "map[ExitCode:0 Pid:7 Status:running]"),
    ("{{.Args}}", "[a b]"),
    ("{{.Nothing}}", "<no value>"),
    ("{{.Ratio}}", "1.5"),
    ('{{.Label "tier"}}', "web"),
    ("{{range .Args}}<{{.}}>{{end}}", "<a><b>"),
    ("{{range $i, $e := .Args}}{{$i}}={{$e}} {{end}}", "0=a 1=b "),
    ("{{range $e := .Args}}{{$e}}{{$.Id}}{{end}}", "aabcbabc"),
    ("{{range $k, $v := .Networks}}{{$k}}={{$v.IP}};{{end}}", "my.net=10.1.0.2;x=10.0.0.2;"),
    ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
    ('{{(index .Networks "my.net").IP}}', "10.1.0.2"),
    ('{{index .Networks "x" "IP" | upper | printf "%-9s|"}}', "10.0.0.2 |"),
    ("{{index .Args 1}}", "b"),
    ('{{if eq .State.Status "running" "paused"}}up{{else}}down{{end}}', "up"),
    ("{{if .State.ExitCode}}bad{{else if .Args}}args{{else}}none{{end}}", "args"),
    ("{{if and .Args (not .Nothing)}}yes{{end}}", "yes"),
    ("{{with .State}}{{.Pid}}{{end}}", "7"),
    ("{{with .Nothing}}x{{else}}y{{end}}", "y"),
    ("{{with $x := .State}}{{$x.Pid}}{{end}}", "7"),
    ("{{$x := .Id}}{{$x}}{{$x}}", "abcabc"),
    ("a {{- .Id -}} b", "aabcb"),
    ("{{/* nothing */}}x", "x"),
    ('{{join .Args ","}} {{len .Args}} {{title "run away"}} {{lower "AB"}}', "a,b 2 Run Away ab"),
    ('{{printf "%s %5d %q %v %%" .Id .State.Pid "q" .Args}}', 'abc     7 "q" [a b] %'),
    ('{{"a}}b"}}{{`c"d`}}{{"\\n"}}', 'a}}bc"d\n'),
    ("{{println .Id 1}}", "abc 1\n"),
    ('{{range split "a:b" ":"}}{{.}},{{end}}', "a,b,"),
    ('{{truncate "abcdef" 3}}{{pad "x" 1 2}}.', "abc x  ."),
    ("{{lt 1 2}} {{ne 1 2}} {{ge 1 2}} {{or 0 5}}", "true true false 5"),
    ("{{true}} {{false}} {{1.5}} {{-3}}", "true false 1.5 -3"),
]


@pytest.mark.parametrize(("source", "text"), RENDERED, ids=[source for source, _ in RENDERED])
def test_templates_render_as_go_renders_them(source: str, text: str) -> None:
    assert Template(source).render(DOT) == text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{", "without }}"),
        ("{{}}", "empty"),
        ("{{end}}", "without a beginning"),
        ("{{if .Id}}", "without {{end}}"),
        ("{{if .Id}}{{else}}{{else}}{{end}}", "without {{end}}"),
        ("{{frobnicate .Id}}", "not a function"),
        ('{{template "x"}}', "not supported"),
        ("{{.Missing}}", "no field .Missing"),
        ("{{.Id.Foo}}", "has no fields"),
        ("{{.Nothing.Foo}}", "of nothing"),
        ("{{$y}}", "has no value"),
        ("{{range .Id}}{{end}}", "cannot range"),
        ("{{(.Id}}", r"\( without \)"),
        ("{{index .Args 9}}", "no index 9"),
        ('{{.Id "x"}}', "not a function"),
        ('{{printf "%999999s" "x"}}', "more than 4096"),
        ('{{printf "%d" "x"}}', "printf failed"),
        ("{{if .Id}}" * 100, "nested deeper"),
        ("{{" + "(" * 100 + ".Id" + ")" * 100 + "}}", "deeper"),
        ("x" * 70000, "more than 65536"),
    ],
)
def test_a_wrong_template_is_refused_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        Template(source).render(DOT)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("source", ['{{1" "}}', '{{-1" "}}', "{{1` `}}", '{{.a" "}}'])
def test_a_quote_behind_a_number_ends(source: str) -> None:
    try:
        Template(source).render(DOT)
    except Invalid:
        pass


WORDS = st.sampled_from(
    ["{{", "}}", "{{-", "-}}", "if", "end", "else", "range", "with", " ", ".", ".Id", ".State", "$", "$x", ":=", "=",
     "(", ")", "|", '"a"', "`", '"', "1", "-1", ",", "json", "printf", "index", "len", "x", "\\", "/*", "*/", "eq"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=25).map("".join) | st.text(max_size=30).map(lambda text: "{{" + text + "}}"))
def test_any_template_renders_or_raises_invalid(source: str) -> None:
    try:
        Template(source).render(DOT)
    except Invalid:
        pass
