//! The page's looks.

/// Colours that differ in lightness as well as in hue, for both backgrounds. Series have `c0` to `c6`.
pub(crate) const STYLE: &str = "
:root{color-scheme:light dark;--back:#fff;--card:#f6f7f9;--text:#1c2024;--quiet:#5b6570;--line:#d9dee4;--mark:#0b6bcb;--bad:#b3261e;
--c0:#0b6bcb;--c1:#c2410c;--c2:#0f766e;--c3:#7c3aed;--c4:#a16207;--c5:#be185d;--c6:#4d7c0f}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--card:#1d2125;--text:#e6e9ec;--quiet:#9aa5b1;--line:#343b43;--mark:#58a6ff;--bad:#ff8a80;
--c0:#58a6ff;--c1:#fb923c;--c2:#2dd4bf;--c3:#c4a5ff;--c4:#facc15;--c5:#f472b6;--c6:#a3e635}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1.25rem 1rem 3rem;background:var(--back);color:var(--text);font:1rem/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .6rem}
.quiet{color:var(--quiet)}.bad{color:var(--bad);font-weight:600}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,9.5rem),1fr));gap:.6rem;margin:1rem 0 0;padding:0}
.facts div{background:var(--card);border-radius:.5rem;padding:.55rem .75rem}
.facts dt{font-size:.8rem;color:var(--quiet)}.facts dd{margin:0;font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:.8rem}
figure{margin:0;background:var(--card);border-radius:.5rem;padding:.7rem .6rem .4rem}
figcaption{font-weight:600;padding:0 .3rem}
.legend{margin:.1rem .3rem 0;font-size:.8rem;color:var(--quiet)}
.legend span{display:inline-block;margin-right:.7rem;white-space:nowrap}
.legend i{display:inline-block;width:1.1rem;height:0;border-top:2.5px solid var(--c);vertical-align:middle;margin-right:.3rem}
.legend .pale i{opacity:.45;border-top-width:1.5px}
.legend .dots i{width:.5rem;height:.5rem;border:0;border-radius:50%;background:var(--c)}
svg{display:block;width:100%;height:auto;margin-top:.3rem}
svg text{font-size:11.5px;fill:var(--quiet)}.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:var(--line);stroke-width:.8}.axis,.tick{stroke:var(--quiet);stroke-width:1}
g path{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}g circle{fill:var(--c)}
g.pale path{stroke-width:1;opacity:.38}g.pale circle{opacity:.38}g.dots path{stroke-width:1.4}
.c0{--c:var(--c0)}.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c3{--c:var(--c3)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.c6{--c:var(--c6)}
.wide{overflow:auto;max-height:40rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{font-size:.8rem;color:var(--quiet);font-weight:500}tbody th{font-weight:500}
.number{text-align:right;white-space:nowrap}.measures tbody th{overflow-wrap:normal;min-width:5.5rem}.measures .quiet{display:block;font-size:.75rem}
figcaption .quiet{font-weight:400;font-size:.8rem}
.ranks{font-size:.8rem}.ranks th{white-space:nowrap}
.ranks td,.ranks thead th+th{text-align:center;padding:.2rem .45rem}
.ranks td{background:color-mix(in srgb,var(--mark) calc(var(--s)*55%),transparent);border:1px solid var(--back)}
.ranks thead th{position:sticky;top:0;background:var(--back)}
.ranks th:first-child{position:sticky;left:0;z-index:1;background:var(--back);font-family:ui-monospace,monospace}
.settings{columns:20rem;column-gap:2rem}.settings table{width:100%;break-inside:avoid;margin-bottom:1rem;font-size:.9rem}
.settings td,pre{font-family:ui-monospace,monospace;font-size:.82rem}
.settings tbody th{color:var(--quiet);white-space:nowrap}
pre{background:var(--card);border-radius:.5rem;padding:.8rem;overflow-x:auto;overflow-wrap:normal}
summary{cursor:pointer}
";
