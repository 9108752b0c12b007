"use strict";
// Learning curves on a canvas: a `Panel` draws the series of one metric and shows a tooltip for the nearest point.

const MARGIN = {left: 58, right: 26, top: 10, bottom: 30};

// Bias-corrected exponential moving average.
function smoothed(values, weight) {
  let total = 0, mass = 0;
  return values.map(value => {
    total = weight * total + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return total / mass;
  });
}

// Interpolates a curve at a step between its first and last.
function interpolated(curve, step) {
  const {steps, values} = curve;
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  const share = steps[high] === steps[low] ? 0 : (step - steps[low]) / (steps[high] - steps[low]);
  return values[low] + share * (values[high] - values[low]);
}

// The mean, minimum and maximum of curves over their common range of steps.
function averaged(curves, points = 200) {
  const first = Math.max(...curves.map(c => c.steps[0])), last = Math.min(...curves.map(c => c.steps.at(-1)));
  const count = last > first ? points : last === first ? 1 : 0;
  const mean = {steps: [], values: [], low: [], high: []};
  for (let i = 0; i < count; i++) {
    const step = first + (count > 1 ? (last - first) * i / (count - 1) : 0);
    const values = curves.map(curve => interpolated(curve, step));
    mean.steps.push(step);
    mean.values.push(values.reduce((a, b) => a + b) / values.length);
    mean.low.push(Math.min(...values));
    mean.high.push(Math.max(...values));
  }
  return mean;
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [], factors = high - low < 2.5 ? [1, 2, 5] : [1];
  for (let power = Math.floor(low); power <= high; power++)
    for (const factor of factors) {
      const at = Math.log10(factor) + power;
      if (at >= low && at <= high) found.push(factor * 10 ** power);
    }
  return found.length > 1 ? found : ticks(10 ** low, 10 ** high, 5).filter(value => value > 0);
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(5)));
}

class Panel {
  constructor(metric, tooltip) {
    this.metric = metric;
    this.tooltip = tooltip;
    this.series = [];
    this.figure = document.createElement("figure");
    this.figure.append(Object.assign(document.createElement("figcaption"), {textContent: metric}));
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.figure.append(this.canvas);
    this.canvas.addEventListener("mousemove", event => this.point(event));
    this.canvas.addEventListener("mouseleave", () => { tooltip.hidden = true; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  // series: [{name, color, dash, steps, values, smooth, faint?, low?, high?}]
  show(series, log) {
    this.log = log;
    this.series = series.map(one => {
      const at = log ? value => value > 0 ? Math.log10(value) : NaN : value => value;
      return {...one, ys: one.values.map(at), faints: one.faint?.map(at), lows: one.low?.map(at), highs: one.high?.map(at)};
    });
    this.canvas.setAttribute("aria-label", `${this.metric} against the step, ${series.length} curves; values are in the table`);
    this.draw();
  }

  scales(width, height) {
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    for (const one of this.series) {
      for (const x of one.steps) { if (x < x0) x0 = x; if (x > x1) x1 = x; }
      for (const ys of [one.faints ?? one.ys, one.lows ?? [], one.highs ?? []])
        for (const y of ys) { if (y < y0) y0 = y; if (y > y1) y1 = y; }
    }
    if (!(y0 <= y1)) return null;
    if (x0 === x1) { x0 -= 1; x1 += 1; }
    const pad = y1 > y0 ? 0.04 * (y1 - y0) : Math.abs(y1) * 0.1 || 1;
    y0 -= pad; y1 += pad;
    const w = width - MARGIN.left - MARGIN.right, h = height - MARGIN.top - MARGIN.bottom;
    return {x0, x1, y0, y1, x: v => MARGIN.left + w * (v - x0) / (x1 - x0), y: v => MARGIN.top + h * (y1 - v) / (y1 - y0)};
  }

  draw(near = null) {
    const canvas = this.canvas, width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    const scale = this.scale = this.scales(width, height);
    if (!scale) {
      pen.fillStyle = style.getPropertyValue("--faint");
      pen.fillText(this.series.length ? "Nothing to draw on this scale" : "No selected run has this metric", MARGIN.left, height / 2);
      return;
    }
    this.axes(pen, scale, width, height, style);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left, 0, width - MARGIN.left - MARGIN.right, height - MARGIN.bottom + 1);
    pen.clip();
    const many = this.series.length > 40;
    for (const one of this.series) {
      if (one.lows) this.band(pen, scale, one);
      if (one.faints && !many) this.line(pen, scale, one, one.faints, 0.25, 1);
      this.line(pen, scale, one, one.ys, many ? (near ? 0.25 : 0.5) : near && near !== one ? 0.35 : 1, many ? 1 : 1.8);
    }
    if (near) this.line(pen, scale, near, near.ys, 1, 3);
    pen.restore();
  }

  axes(pen, scale, width, height, style) {
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.fillStyle = style.getPropertyValue("--faint");
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const value of this.log ? logTicks(scale.y0, scale.y1) : ticks(scale.y0, scale.y1, 6)) {
      const y = Math.round(scale.y(this.log ? Math.log10(value) : value)) + 0.5;
      pen.beginPath(); pen.moveTo(MARGIN.left, y); pen.lineTo(width - MARGIN.right, y); pen.stroke();
      pen.fillText(short(value), MARGIN.left - 6, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const value of ticks(scale.x0, scale.x1, Math.max(2, Math.floor(width / 90)))) {
      const x = scale.x(value);
      pen.beginPath(); pen.moveTo(x, height - MARGIN.bottom); pen.lineTo(x, height - MARGIN.bottom + 4); pen.stroke();
      pen.fillText(value.toLocaleString("en"), x, height - MARGIN.bottom + 7);
    }
  }

  line(pen, scale, one, ys, alpha, width) {
    pen.globalAlpha = alpha;
    pen.strokeStyle = pen.fillStyle = one.color;
    pen.lineWidth = width;
    pen.setLineDash(this.series.length > 40 ? [] : one.dash);  // dashes are unreadable with many curves
    pen.beginPath();
    ys.forEach((y, i) => { if (!Number.isNaN(y)) pen.lineTo(scale.x(one.steps[i]), scale.y(y)); });
    pen.stroke();
    pen.setLineDash([]);
    if (ys.length === 1) pen.fillRect(scale.x(one.steps[0]) - 3, scale.y(ys[0]) - 3, 6, 6);
    pen.globalAlpha = 1;
  }

  band(pen, scale, one) {
    pen.globalAlpha = 0.18;
    pen.fillStyle = one.color;
    pen.beginPath();
    one.steps.forEach((step, i) => pen.lineTo(scale.x(step), scale.y(Number.isNaN(one.lows[i]) ? scale.y0 : one.lows[i])));
    for (let i = one.steps.length - 1; i >= 0; i--) if (!Number.isNaN(one.highs[i])) pen.lineTo(scale.x(one.steps[i]), scale.y(one.highs[i]));
    pen.fill();
    pen.globalAlpha = 1;
  }

  point(event) {
    if (!this.scale) return;
    let best = 40 ** 2, near = null, at = 0;
    for (const one of this.series)
      for (let i = 0; i < one.steps.length; i++) {
        const dx = this.scale.x(one.steps[i]) - event.offsetX, dy = this.scale.y(one.ys[i]) - event.offsetY, far = dx * dx + dy * dy;
        if (far < best) { best = far; near = one; at = i; }
      }
    this.tooltip.hidden = !near;
    this.draw(near);
    if (!near) return;
    const step = Math.round(near.steps[at]).toLocaleString("en");
    this.tooltip.textContent = `${near.name}\n${this.metric}${near.smooth ? ", smoothed," : ""} ${short(near.values[at])} at step ${step}`;
    const right = event.clientX > window.innerWidth / 2;
    this.tooltip.style.left = right ? "" : `${event.clientX + 14}px`;
    this.tooltip.style.right = right ? `${document.documentElement.clientWidth - event.clientX + 14}px` : "";
    this.tooltip.style.top = `${event.clientY + 14}px`;
  }
}
