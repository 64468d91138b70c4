"use strict";
// Names of terms stand in the page's HTML, escaped; the charts have numbers alone.

const page = JSON.parse(document.getElementById("series").textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const coarse = matchMedia("(pointer: coarse)").matches;
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;

function axis(words, more) {
  return { title: { text: words, standoff: 8 }, gridcolor: colour("rule"), linecolor: colour("rule"), zeroline: false, fixedrange: coarse, ...more };
}

function around(more) {
  const ink = colour("ink");
  return {
    autosize: true, margin: { l: 70, r: 70, t: 20, b: 46 }, showlegend: false, hovermode: "x unified", dragmode: coarse ? false : "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", color: ink },
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("rule"), font: { color: ink } }, ...more,
  };
}

function scree() {
  const { number, share, sum, count } = page.scree;
  const few = count <= 60, ink = colour("ink"), last = sum.at(-1);
  const own = few
    ? { type: "bar", marker: { color: colour("parameter") } }
    : { mode: "lines", line: { color: colour("parameter"), width: 2 } };
  const traces = [
    { ...own, x: number, y: share, name: "explains", customdata: share.map(percent), hovertemplate: "%{customdata}" },
    {
      x: number, y: sum, yaxis: "y2", name: "so far", mode: few ? "lines+markers" : "lines", line: { color: colour("gradient"), width: 2.5 },
      customdata: sum.map(percent), hovertemplate: "%{customdata}",
    },
    { x: [count], y: [last], yaxis: "y2", mode: "markers", hoverinfo: "skip", marker: { color: ink, size: 9, symbol: "diamond" } },
  ];
  const mark = {
    x: count, y: last, yref: "y2", text: `k = ${count.toLocaleString("en")}: ${percent(last)}`, showarrow: true, ax: -40, ay: last > 0.85 ? 28 : -28,
    xanchor: "right", arrowcolor: ink, arrowhead: 0, font: { size: 13, color: ink }, bgcolor: colour("paper"), borderpad: 3,
  };
  const layout = around({
    xaxis: axis("component", { showgrid: false, range: few ? [0.4, count + 0.6] : [0, count * 1.02] }),
    yaxis: axis("explained by each", { type: few ? "linear" : "log", dtick: few ? undefined : "D2", tickformat: few ? ".1%" : "~%", color: colour("parameter") }),
    yaxis2: axis("explained so far", {
      overlaying: "y", side: "right", range: [0, Math.min(1, last * 1.12)], tickmode: "auto", nticks: 6, tickformat: ".0%", showgrid: false, color: colour("gradient"),
    }),
    shapes: [{ type: "line", x0: count, x1: count, y0: 0, y1: last, yref: "y2", line: { color: ink, width: 1, dash: "dash" } }],
    annotations: [mark],
  });
  return [traces, layout];
}

function perplexity() {
  const { passes, unigram } = page.perplexity;
  const x = passes.map((_, place) => place + 1), ink = colour("ink");
  const traces = [{ x, y: passes, mode: "lines+markers", name: "perplexity", line: { color: colour("saved"), width: 2.5 }, hovertemplate: "%{y:.0f}" }];
  const layout = around({
    xaxis: axis("pass", { showgrid: false, dtick: Math.max(1, Math.ceil(x.length / 12)) }),
    yaxis: axis("perplexity", { range: [0, unigram * 1.1], tickformat: ",.0f" }),
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: unigram, y1: unigram, line: { color: ink, width: 1, dash: "dash" } }],
    annotations: [{ xref: "paper", x: 1, y: unigram, text: "one distribution for all", showarrow: false, xanchor: "right", yanchor: "bottom", font: { color: ink } }],
  });
  return [traces, layout];
}

async function draw(chart) {
  const made = { scree, perplexity }[chart.dataset.chart];
  const paint = () => Plotly.react(chart, ...made(), { displayModeBar: false, responsive: true });
  await paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  chart.dataset.drawn = "true";
}

document.querySelectorAll(".chart").forEach(draw);
