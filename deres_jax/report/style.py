# SPDX-License-Identifier: Apache-2.0
"""The style sheet of a page of scaling laws.

The colours of curves are those of Okabe and Ito, darker on white and lighter on black, so that
they are told apart with any colour vision; shapes tell them apart without colour.
"""

STYLE = """
:root{color-scheme:light dark;--text:#1c2128;--soft:#59636e;--rule:#c9d0d7;--grid:#e9edf1;
--page:#fff;--panel:#f6f8fa;--note:#fff8e6;--note-rule:#d99e1f;--link:#0b5fa8;--shade:#0003;
--c0:#47515c;--c1:#0072b2;--c2:#cc4e00;--c3:#00805d;--c4:#b04a8b;--c5:#8a6a00;--c6:#2f93cf}
@media(prefers-color-scheme:dark){:root{--text:#e4e9ee;--soft:#9aa4af;--rule:#3a424b;
--grid:#232930;--page:#0f1318;--panel:#171c22;--note:#221c0e;--note-rule:#b98a25;--link:#7cb8f0;--shade:#fff4;
--c0:#b4bdc7;--c1:#4aa8e8;--c2:#ff8a4a;--c3:#2fc79c;--c4:#e48cc4;--c5:#dcb13c;--c6:#93d3f7}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;max-width:64rem;
margin:0 auto;padding:2.6rem 1.5rem 5rem;color:var(--text);background:var(--page);
-webkit-text-size-adjust:100%}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:.1rem 0 .5rem;
overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.3rem;line-height:1.3;letter-spacing:-.01em;margin:3.4rem 0 .5rem}
h3{font-size:1rem;line-height:1.35;margin:2rem 0 .3rem}
p{max-width:44rem;margin:.5rem 0}
a{color:var(--link);text-underline-offset:3px;text-decoration-thickness:1px}
.over{color:var(--soft);font-size:.85rem;margin:0}
.soft,.note{color:var(--soft)}.note{font-size:.875rem;line-height:1.5}
.lead{font-size:1.2rem;line-height:1.5;margin:1.3rem 0 1.6rem;overflow-wrap:anywhere}
ul{padding:0;margin:0;list-style:none}
.answers{display:grid;grid-template-columns:minmax(0,1fr) minmax(13rem,19rem);
gap:.9rem 2.4rem;align-items:center}
.answers>*{min-width:0;overflow-wrap:anywhere}
.answers p{margin:0;max-width:none}.answers .what{line-height:1.4}
.strip{max-width:19rem}.answers .note{line-height:1.45;margin-top:.1rem}
.whole{white-space:nowrap}.figure{font-variant-numeric:tabular-nums}.figure b{font-weight:650}
.warnings{background:var(--note);border-left:3px solid var(--note-rule);border-radius:0 6px 6px 0;
padding:.9rem 1.2rem 1rem;margin:2.2rem 0 0}
.warnings h2{font-size:1rem;letter-spacing:0;margin:0 0 .35rem}
.warnings ul{max-width:44rem}.warnings .many{max-width:none;columns:25rem 2;column-gap:2.4rem}
.warnings li{font-size:.925rem;line-height:1.5;padding:.2rem 0;break-inside:avoid;
overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;overflow:visible}
.mark{display:inline-block;width:.85em;height:.85em;flex:none;position:relative;top:.08em}
.named{display:inline-flex;gap:.45em;align-items:baseline}
.long{white-space:normal;width:13rem;overflow-wrap:anywhere}
.key{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;margin:.7rem 0 .8rem;font-size:.875rem}
.key li{display:inline-flex;gap:.4em;align-items:baseline;min-width:0}
.key span{overflow-wrap:anywhere}
figure{margin:1.2rem 0 0}figcaption{font-size:.875rem;line-height:1.5;color:var(--soft);
max-width:44rem;margin-top:.7rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));
gap:2.2rem 2.6rem}
.narrow,.narrow-only{display:none}
svg text{font-size:12px;font-family:inherit;fill:var(--soft);font-variant-numeric:tabular-nums}
svg .axis{fill:var(--soft)}svg .name{font-size:13px;font-weight:600}
svg .width{font-size:11px;paint-order:stroke;stroke:var(--page);
stroke-width:3px;stroke-linejoin:round}
.wide text{font-size:13px}.wide .name{font-size:13.5px}
.grid{stroke:var(--grid)}.rule{stroke:var(--rule)}
.level{stroke:var(--soft);stroke-dasharray:4 4;opacity:.7}.one{stroke:var(--rule)}
.curve{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}
.band{fill:currentColor;opacity:.13}
.join{fill:none;stroke:currentColor;stroke-width:1.3;opacity:.55}
.leader{fill:none;stroke:currentColor;opacity:.5}
.run{fill:currentColor;opacity:.8}.fill,.shared{fill:currentColor}
.mean,path.free{fill:var(--page);stroke:currentColor;stroke-width:1.4;
vector-effect:non-scaling-stroke}
.name{fill:currentColor!important}
.whisker{fill:none;stroke:currentColor;stroke-width:2;stroke-linecap:round}
.whisker.free{stroke-width:1.2;opacity:.8}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}
.run:hover,.mean:hover{opacity:1;stroke:var(--text);stroke-width:1.4;
vector-effect:non-scaling-stroke}
.box{overflow-x:auto;margin:.8rem 0 .4rem;background:
linear-gradient(to left,var(--page) 40%,transparent) right/2.5rem 100% no-repeat local,
radial-gradient(farthest-side at 100% 50%,var(--shade),transparent) right/.9rem 100% no-repeat}
.tall{max-height:42rem;overflow-y:auto}
.box:focus-visible{outline:2px solid var(--link);outline-offset:3px}
table{border-collapse:collapse;font-size:.85rem;line-height:1.4;
font-variant-numeric:tabular-nums;white-space:nowrap}
td,th{padding:.34rem .8rem;border-bottom:1px solid var(--grid);text-align:right;
font-weight:normal;vertical-align:baseline}
thead th{color:var(--soft);border-bottom:1px solid var(--rule);vertical-align:bottom}
thead th[colspan]{border:0;text-align:left;padding-bottom:0;color:var(--text);font-weight:600}
td:first-child,th:first-child{text-align:left;padding-left:0}
tbody tr:last-child>*{border-bottom-color:var(--rule)}
.grouped td,.grouped th{padding-right:.4rem}.grouped td{padding-left:.4rem}
tbody th{position:sticky;left:0;background:var(--page)}
.grouped .ends{display:block;color:var(--soft);font-size:.95em}
.text :is(td,th):nth-child(2),
.text-too :is(td,th):nth-child(3){text-align:left}
.tall thead th{z-index:1;position:sticky;top:0;background:var(--page);border:0;
box-shadow:inset 0 -1px var(--rule)}
code,pre{font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--panel);border-radius:6px;padding:.7rem .9rem;margin:.4rem 0;
white-space:pre-wrap;overflow-wrap:anywhere;text-align:left;user-select:all;
-webkit-user-select:all}
.tall table{position:relative;min-width:100%}
td details[open]{padding-bottom:8.2rem}
td pre{position:absolute;right:0;width:min(58rem,86vw);max-width:100%;height:7.2rem;overflow:auto}
summary{cursor:pointer;color:var(--link)}
details>.note:first-of-type{margin-top:.6rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.3rem 1.2rem;
font-size:.875rem;margin:.8rem 0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:42rem){body{padding:1.6rem 1rem 3.5rem}h1{font-size:1.5rem}
.lead{font-size:1.08rem;margin:1rem 0 1.3rem}
.answers{grid-template-columns:minmax(0,1fr);gap:.5rem}.answers .strip{margin-bottom:.6rem}
h2{margin-top:2.6rem}.wide,.wide-only{display:none}.narrow{display:block}
.key.narrow-only{display:flex}.warnings{padding:.8rem .9rem}
td,th{padding:.34rem .5rem}.long{width:9rem}
dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.5rem}}
@media print{body{max-width:none;padding:0}.box,.tall{overflow:visible;max-height:none}}
"""
