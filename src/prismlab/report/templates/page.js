"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };

  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* Colours come from the page's style, so that a figure follows light and dark. */
  const themed = (layout) => {
    const ink = tone("--ink"), soft = tone("--soft"), grid = tone("--grid"), card = tone("--card"), line = tone("--line");
    const out = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: tone("--sans"), size: 12, color: soft },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink, family: tone("--sans") } },
      legend: { ...layout.legend, font: { color: ink, size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      annotations: (layout.annotations || []).map((a) => ({ ...a, font: { color: ink, size: 13 } })),
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) {
        const title = { ...layout[key].title, font: { size: 12, color: soft }, standoff: 6 };
        out[key] = { ...layout[key], title, gridcolor: grid, linecolor: line, zerolinecolor: line, ticks: "" };
      }
    }
    return out;
  };

  /* Pixels that the names under a panel take where they are too many to stand level: their length, about 7 a letter. */
  const upright = (data, layout, suffix, width) => {
    if (layout["xaxis" + suffix].type !== "category" || layout["xaxis" + suffix].showticklabels === false) return 0;
    const under = data.filter((t) => (t.xaxis || "x") === "x" + suffix);
    const wide = (names) => Math.max(0, ...names.map((name) => 7 * String(name).length));
    const names = [...new Set(under.flatMap((t) => t.x || []))], longest = wide(names);
    const left = layout["yaxis" + suffix].type === "category" ? wide(under.flatMap((t) => t.y || [])) : 40;
    return names.length * (longest + 8) > width - left - 40 ? longest : 0;
  };

  /* On a narrow screen panels stand in one column. */
  const arranged = (layout, width, names, data) => {
    const { panels, panel_height: row } = layout.meta;
    if (width > 640 || row === 0) return layout;
    /* A panel takes 0.68 of its row; between it and the next are a title and the names under it, after the last none. */
    const foot = 50 - (layout.meta.unnamed || 0) + (layout.showlegend ? 24 + 18 * names : 0);
    const plot = 0.68 * row, heads = [0];
    for (let k = 0; k + 1 < panels; k += 1) {
      const room = upright(data, layout, k === 0 ? "" : String(k + 1), width);
      heads.push(heads[k] + plot + Math.max(0.32 * row, room === 0 ? 0 : room + 60));
    }
    const plots = heads[panels - 1] + plot, out = { ...layout, height: plots + 34 + foot };
    out.margin = { ...layout.margin, b: foot };
    out.annotations = [...layout.annotations];
    for (let k = 0; k < panels; k += 1) {
      const suffix = k === 0 ? "" : String(k + 1);
      const top = 1 - heads[k] / plots, bottom = Math.max(0, top - plot / plots);
      out["xaxis" + suffix] = { ...layout["xaxis" + suffix], domain: [0, 1] };
      out["yaxis" + suffix] = { ...layout["yaxis" + suffix], domain: [bottom, top] };
      out.annotations[k] = { ...out.annotations[k], x: 0, y: top };
    }
    return out;
  };

  const seedOf = (trace) => (trace.meta && trace.meta.seed !== null && trace.meta.seed !== undefined ? trace.meta.seed : null);

  const traces = (data) =>
    data.map((t) => {
      let out = t.error_y ? { ...t, error_y: { ...t.error_y, color: tone("--ink") } } : t;
      /* The library chooses dark figures for a pale cell, as if there were white behind it. */
      if (t.type === "heatmap" && dark.matches) out = { ...t, textfont: { color: tone("--ink") } };
      return seedOf(t) !== null && hidden.has(String(seedOf(t))) ? { ...out, visible: false } : out;
    });

  const draw = (node) => {
    const figure = figures[node.dataset.figure];
    const names = figure.data.filter((t) => t.showlegend !== false).length;
    const layout = themed(arranged(figure.layout, node.clientWidth, names, figure.data));
    node.style.height = layout.height + "px";
    node.dataset.drawn = "yes";
    return Plotly.react(node, traces(figure.data), layout, config);
  };

  const nodes = [...document.querySelectorAll(".plot")];
  const redraw = () => nodes.filter((n) => n.dataset.drawn).forEach(draw);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        seen.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "900px" });
  nodes.forEach((node) => seen.observe(node));
  /* What is in view comes first; the rest follows by itself, so that nobody waits for it when scrolling. */
  const rest = () => {
    const next = nodes.find((node) => !node.dataset.drawn);
    if (next) {
      draw(next);
      setTimeout(rest, 20);
    }
  };
  setTimeout(rest, 200);

  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => nodes.forEach(draw));
  let narrow = innerWidth <= 640;
  addEventListener("resize", () => {
    if (narrow !== innerWidth <= 640) {
      narrow = innerWidth <= 640;
      redraw();
    }
  });

  document.querySelectorAll("[data-seed]").forEach((box) => {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.dataset.seed);
      else hidden.add(box.dataset.seed);
      redraw();
    });
  });

  /* A link into a folded table opens it. */
  const open = () => {
    const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    const fold = target ? target.closest("details") : null;
    if (fold && !fold.open) {
      fold.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  document.querySelectorAll("[data-open]").forEach((link) => link.addEventListener("click", () => setTimeout(open)));
  open();
})();
