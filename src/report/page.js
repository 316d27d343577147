"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const store = (value) => { try { if (value) localStorage.setItem("theme", value); return localStorage.getItem("theme"); } catch { return value; } };
  const known = store();
  if (known === "light" || known === "dark") root.dataset.theme = known;
  button.hidden = false;
  button.addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    store(root.dataset.theme);
  });

  const tip = document.getElementById("tip");
  const raised = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  const number = (value) => {
    if (value === 0) return "0";
    const [digits, exponent] = value.toExponential(3).split("e");
    if (exponent >= -3 && exponent < 6) return String(+value.toPrecision(Math.max(4, +exponent + 1))).replace("-", "−");
    return String(+digits).replace("-", "−") + "·10" + [...String(+exponent)].map((c) => raised[c]).join("");
  };
  const svg = "http://www.w3.org/2000/svg";
  const make = (parent, name, attributes) => {
    const element = document.createElementNS(svg, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return parent.appendChild(element);
  };

  for (const figure of document.querySelectorAll("figure.chart")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const drawing = figure.querySelector("svg");
    const place = ([log, low, high, from, to], value) => from + ((log ? Math.log10(value) : value) - low) / (high - low) * (to - from);
    const all = data.series.filter((series) => series.points.length)
      .map((series) => ({ ...series, at: series.points.map(([x, y]) => [place(data.x, x), place(data.y, y)]) }));
    let layer = null;
    const leave = () => { if (layer) layer.remove(); layer = null; tip.hidden = true; };
    const move = (event) => {
      const box = drawing.getBoundingClientRect();
      const scale = data.width / box.width;
      const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
      if (py < data.top - 8 || py > data.bottom + 12 || !all.length) return leave();
      let near = [];
      for (const series of all) {
        let best = 0;
        series.at.forEach((at, index) => { if (Math.abs(at[0] - px) < Math.abs(series.at[best][0] - px)) best = index; });
        near.push({ series, at: series.at[best], point: series.points[best] });
      }
      const x = near.reduce((a, b) => Math.abs(b.at[0] - px) < Math.abs(a.at[0] - px) ? b : a);
      near = near.filter((one) => Math.abs(one.at[0] - x.at[0]) < 12)
        .sort((a, b) => Math.abs(a.at[1] - py) - Math.abs(b.at[1] - py)).slice(0, 8).sort((a, b) => a.at[1] - b.at[1]);
      if (layer) layer.remove();
      layer = make(drawing, "g", { "pointer-events": "none" });
      make(layer, "path", { class: "rule", d: `M${x.at[0]} ${data.top}V${data.bottom}` });
      for (const one of near) make(layer, "circle", { class: one.series.class.split(" ")[0], cx: one.at[0], cy: one.at[1], r: 3.5 });
      tip.replaceChildren();
      const line = (name, value, kind) => {
        const row = tip.appendChild(document.createElement("div"));
        row.className = kind;
        for (const text of [name, value]) row.appendChild(document.createElement("span")).textContent = text;
      };
      line(data.label, number(x.point[0]), "x");
      for (const one of near) line(one.series.name, number(one.point[1]), "");
      tip.hidden = false;
      const size = tip.getBoundingClientRect();
      const left = event.clientX + 14 + size.width > innerWidth - 8 ? event.clientX - 14 - size.width : event.clientX + 14;
      tip.style.left = Math.max(8, left) + "px";
      tip.style.top = Math.max(8, Math.min(event.clientY - size.height / 2, innerHeight - size.height - 8)) + "px";
    };
    drawing.addEventListener("pointermove", move);
    drawing.addEventListener("pointerdown", move);
    drawing.addEventListener("pointerleave", leave);
  }
})();
