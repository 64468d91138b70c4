"use strict";
// Names in the data come from the model and are never parsed as HTML: every element below gets its words by textContent.

const page = JSON.parse(document.getElementById("series").textContent);

function element(name, className, words) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (words !== undefined) made.textContent = words;
  return made;
}

function writeBytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = Math.abs(count), unit = 0;
  while (size >= 999.5 && unit < units.length - 1) { size /= 1024; unit += 1; }
  const digits = unit === 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return `${count < 0 ? "-" : ""}${size.toFixed(digits)} ${units[unit]}`;
}

const slugs = {
  "parameter": "parameter", "buffer": "buffer", "input": "input", "optimizer state": "optimizer", "gradient": "gradient",
  "saved for backward": "saved", "temporary": "temporary", "kernel scratch": "scratch", "observed": "observed",
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const coarse = matchMedia("(pointer: coarse)").matches;

// Both charts of a pair share one scale, so that their heights compare.
const step = (() => {
  const unit = page.top >= 1024 ** 3 ? 1024 ** 3 : page.top >= 1024 ** 2 ? 1024 ** 2 : page.top >= 1024 ? 1024 : 1;
  const rough = page.top / unit / 6;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const factor = [1, 2, 5, 10].find((one) => one * power >= rough);
  return { unit, size: factor * power, name: { 1: "B", 1024: "KiB", [1024 ** 2]: "MiB", [1024 ** 3]: "GiB" }[unit] };
})();

function traces(model, measuredPeak) {
  // Each level lasts until the next point; the last one until the end of the step.
  const x = [...model.x, model.moments];
  const held = (values) => [...values, values.at(-1)].map((value) => value / step.unit);
  const areas = model.levels.map((level) => ({
    x, y: held(level.bytes), stackgroup: "all", name: level.category, hoverinfo: "none", mode: "lines",
    line: { shape: "hv", width: 0 }, fillcolor: colour(slugs[level.category]),
  }));
  const line = { color: colour("measured"), width: 1.25, shape: "hv" };
  const measured = model.measured
    ? { x: model.measured.x, y: model.measured.bytes.map((value) => value / step.unit), line }
    : measuredPeak ? { x: [0, model.moments], y: [measuredPeak / step.unit, measuredPeak / step.unit], line } : null;
  if (measured) areas.push({ ...measured, name: "measured", mode: "lines", hoverinfo: "skip" });
  for (const mark of page.marks) {
    areas.push({
      x: [0, model.moments], y: [mark.bytes / step.unit, mark.bytes / step.unit], name: mark.name, mode: "lines", hoverinfo: "skip",
      line: { color: colour("ink"), width: 1, dash: "dash" },
    });
  }
  areas.push({
    x: [model.x[model.peak]], y: [model.total[model.peak] / step.unit], mode: "markers", name: "peak", hoverinfo: "skip",
    marker: { color: colour("ink"), size: 8, symbol: "diamond" },
  });
  return areas;
}

function phaseLabels(model, width) {
  // Narrow phases are named once, on the first row above the chart that has room; none of the rows, no name.
  const taken = [-Infinity, -Infinity, -Infinity], named = new Set(), found = [];
  for (const [phase, start, stop] of model.phases) {
    const words = phase.length * 7.5, left = (start / model.moments) * width, right = (stop / model.moments) * width;
    const wide = right - left > words;
    if (!wide && named.has(phase)) continue;
    const middle = Math.min((left + right) / 2, width - words / 2);
    const row = taken.findIndex((end, place) => (wide || place > 0) && middle - words / 2 > end);
    if (row < 0) continue;
    taken[row] = middle + words / 2;
    named.add(phase);
    found.push({
      x: (middle / width) * model.moments, y: 1, yref: "paper", yshift: 11 + 14 * row, text: phase, showarrow: false,
      font: { size: 12, color: colour("quiet") },
    });
  }
  return found;
}

function markLabels(model) {
  // At the side where the peak is not, over the line; under it where the other line is close above.
  const right = model.x[model.peak] > model.moments / 2;
  const ordered = [...page.marks].sort((a, b) => b.bytes - a.bytes);
  return ordered.map((mark, place) => {
    const close = place > 0 && ordered[place - 1].bytes - mark.bytes < page.top * 0.07;
    return {
      x: right ? 0 : model.moments, y: mark.bytes / step.unit, text: `${mark.name} ${writeBytes(mark.bytes)}`, showarrow: false,
      xanchor: right ? "left" : "right", yanchor: close ? "top" : "bottom", font: { size: 12, color: colour("ink") },
    };
  });
}

function layout(model, width) {
  const ink = colour("ink"), rule = colour("rule");
  const right = model.x[model.peak] > model.moments / 2;
  const peak = {
    x: model.x[model.peak], y: model.total[model.peak] / step.unit, text: `peak ${writeBytes(model.total[model.peak])}`, showarrow: true,
    ax: right ? -28 : 28, ay: -10, xanchor: right ? "right" : "left", arrowcolor: ink, arrowwidth: 1, arrowhead: 0,
    font: { size: 13, color: ink }, bgcolor: colour("paper"), borderpad: 2,
  };
  return {
    height: undefined, autosize: true, margin: { l: 62, r: 8, t: 50, b: 40 }, showlegend: false, hovermode: "x", hoverdistance: -1,
    dragmode: coarse ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", color: ink },
    xaxis: {
      range: [0, model.moments], title: { text: "operator calls", standoff: 6 }, showgrid: false, zeroline: false, linecolor: rule, fixedrange: coarse,
      showspikes: true, spikemode: "across", spikesnap: "hovered data", spikethickness: 1, spikedash: "solid", spikecolor: ink, separatethousands: true,
    },
    yaxis: { range: [0, (page.top / step.unit) * 1.2], dtick: step.size, ticksuffix: ` ${step.name}`, gridcolor: rule, zeroline: false, fixedrange: true },
    shapes: model.phases.filter((_, place) => place % 2 === 1).map(([, start, stop]) => ({
      type: "rect", xref: "x", yref: "paper", x0: start, x1: stop, y0: 0, y1: 1, line: { width: 0 }, fillcolor: colour("band"), layer: "below",
    })).concat(model.phases.slice(1).map(([, start]) => ({
      type: "line", xref: "x", yref: "paper", x0: start, x1: start, y0: 0, y1: 1.02, line: { width: 1, color: colour("quiet"), dash: "dot" },
    }))),
    annotations: [...phaseLabels(model, width), peak, ...markLabels(model)],
  };
}

function describe(model, at, measuredPeak, panel) {
  const moment = model.x[at];
  const phase = model.phases.find(([, , stop]) => moment < stop)[0];
  const place = element("p");
  place.append(
    element("span", "module", model.names[model.module[at]] || "the model itself"),
    ` · ${model.names[model.operator[at]]} · ${phase} · call ${(moment + 1).toLocaleString("en")} of ${model.moments.toLocaleString("en")}`,
    at === model.peak ? " · the peak" : "",
  );
  const list = element("ul");
  list.append(element("li", "heading", "alive, by category"));
  for (const level of [...model.levels].reverse()) {
    const item = element("li");
    item.append(element("i", `swatch ${slugs[level.category]}`), level.category, element("span", "number", writeBytes(level.bytes[at])));
    list.append(item);
  }
  const total = element("li");
  total.append(element("b", "", "in all"), element("b", "number", writeBytes(model.total[at])));
  list.append(total);
  if (measuredPeak) {
    const item = element("li", "heading");
    item.append("measured peak (line)", element("span", "number", writeBytes(measuredPeak)));
    list.append(item);
  }
  const table = element("table"), body = element("tbody");
  for (const place of model.top[at]) {
    const [bytes, category, module, operator, shape, kept] = model.blocks[place];
    const row = element("tr"), mark = element("td"), what = element("td");
    mark.append(element("i", `swatch ${slugs[category]}`));
    what.append(element("span", "module", model.names[module] || "the model itself"), ` ${model.names[operator]} ${shape}`,
      model.names[kept] ? element("span", "meaning", ` kept for ${model.names[kept]}`) : "");
    row.append(element("td", "number", writeBytes(bytes)), mark, what);
    body.append(row);
  }
  table.append(body);
  const largest = element("div");
  largest.append(element("p", "heading", "largest blocks alive"), table);
  const columns = element("div", "columns");
  columns.append(list, largest);
  panel.replaceChildren(place, columns);
}

function pointOut(model, at, chart, tip) {
  const axis = chart._fullLayout.xaxis;
  const left = axis._offset + axis.l2p(model.x[at]);
  tip.replaceChildren(element("b", "", model.names[model.module[at]] || "the model itself"), element("br"),
    `${model.names[model.operator[at]]} · ${writeBytes(model.total[at])}`);
  tip.hidden = false;
  const right = left > chart.clientWidth / 2;
  tip.style.left = right ? "auto" : `${left + 14}px`;
  tip.style.right = right ? `${chart.clientWidth - left + 14}px` : "auto";
}

async function draw(chart) {
  const place = Number(chart.dataset.chart);
  const model = page.models[place], measuredPeak = page.measured_peaks[place];
  const tip = chart.parentElement.querySelector(".tip"), panel = chart.parentElement.nextElementSibling;
  const paint = () => Plotly.react(chart, traces(model, measuredPeak), layout(model, chart.clientWidth - 70), { displayModeBar: false, responsive: true });
  let at = model.peak;
  const show = (index) => { at = index; describe(model, at, measuredPeak, panel); };
  await paint();
  show(at);
  chart.on("plotly_hover", (event) => {
    show(Math.min(event.points[0].pointIndex, model.x.length - 1));
    pointOut(model, at, chart, tip);
  });
  chart.on("plotly_unhover", () => { tip.hidden = true; show(model.peak); });
  chart.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: model.x.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(Math.max(0, Math.min(moves[event.key], model.x.length - 1)));
    pointOut(model, at, chart, tip);
  });
  chart.addEventListener("blur", () => { tip.hidden = true; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  chart.dataset.drawn = "true";
}

function prepare(table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const tools = table.closest(".scroll").previousElementSibling;
  const search = tools.querySelector("input"), count = tools.querySelector("output"), words = count.textContent;
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  table.tHead.addEventListener("click", (event) => {
    const header = event.target.closest("th");
    if (!header) return;
    const column = header.cellIndex, was = header.getAttribute("aria-sort");
    // Numbers from the largest, names from A and layers in the model's order; a second click turns it round.
    const first = header.classList.contains("number") ? "descending" : "ascending";
    const order = was === "none" ? first : was === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", other === header ? order : "none");
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
    rows.sort((a, b) => sign * compare(key(a, column), key(b, column)));
    body.append(...rows);
  });
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let found = 0;
    for (const row of rows) {
      row.hidden = !`${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase().includes(wanted);
      found += row.hidden ? 0 : 1;
    }
    count.textContent = wanted ? `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")} layers` : words;
  });
}

document.querySelectorAll(".chart").forEach(draw);
document.querySelectorAll(".layers").forEach(prepare);
