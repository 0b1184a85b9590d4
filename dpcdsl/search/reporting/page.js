"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const say = (text) => { byId("said").textContent = text; };

  // Numbers, as the page writes them

  const trimmed = (text) => text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  const scored = (value) =>
    value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6) ? value.toFixed(4) : value.toPrecision(4);
  const counted = (value) => Math.round(value).toLocaleString("en");
  const short = (value) => {
    for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["K", 1e3]]) {
      if (Math.abs(value) >= size) return trimmed((value / size).toFixed(2)) + unit;
    }
    return trimmed(value.toPrecision(4));
  };
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  // 0.30000000000000004 is 0.3 on an axis.
  const tick = (value) => String(Number(value.toPrecision(6)));
  // The same for an axis of these values, on which 0.7 is 0.70 beside 0.71.
  const ticks = (values) => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
    const digits = high > low ? Math.ceil(-Math.log10((high - low) / 5)) : 0;
    return (value) => {
      const text = tick(value);
      const [, decimals = ""] = text.split(".");
      return decimals.length < digits && !text.includes("e") ? value.toFixed(Math.min(digits, 9)) : text;
    };
  };

  // Light and dark

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : system.matches;
  };
  const theme = byId("theme");
  const tellTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Change to ${isDark() ? "light" : "dark"}`);
  };
  theme.hidden = false;
  tellTheme();
  theme.addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try {
      localStorage.setItem("dpcdsl-report-theme", chosen);
    } catch {
      // It holds while the page is open.
    }
    tellTheme();
    redraw();
  });
  system.addEventListener("change", () => { tellTheme(); redraw(); });

  // Copying. From a file there may be no clipboard to write to, and then the old way is taken.

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const before = document.activeElement;
      const field = document.createElement("textarea");
      field.value = text;
      field.readOnly = true;
      field.style.cssText = "position:fixed;top:0;left:0;opacity:0";
      document.body.append(field);
      field.select();
      let done = false;
      try {
        done = document.execCommand("copy");
      } catch {
        // Said below.
      }
      field.remove();
      before?.focus({ preventScroll: true });
      return done;
    }
  };
  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const done = await copy(button.parentElement.querySelector("code").textContent);
      button.textContent = done ? "Copied" : "Not copied";
      say(done ? "The cell is copied." : "The browser did not let it be copied.");
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  // The table

  const table = byId("rows");
  if (table) {
    const rows = [...table.rows].map((row) => ({
      row,
      text: row.querySelector("code").textContent.toLowerCase(),
      value: (key) => (row.dataset[key] === "" ? null : Number(row.dataset[key])),
    }));
    const heads = all(".cells th[aria-sort]");

    const sort = (key, ascending) => {
      const sign = ascending ? 1 : -1;
      rows.sort((a, b) => {
        const [x, y] = [a.value(key), b.value(key)];
        if (x === null || y === null) return (x === null) - (y === null) || a.value("place") - b.value("place");
        return sign * (x - y) || a.value("place") - b.value("place");
      });
      table.append(...rows.map((each) => each.row));
    };
    for (const head of heads) {
      const button = head.querySelector("button");
      const key = button.dataset.column;
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        // The best first: the largest score, the smallest of all else.
        const ascending = now === "none" ? key !== "score" && key !== "final" : now !== "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(key, ascending);
      });
    }

    const limit = (field) => {
      const given = field.value.trim().replaceAll(",", "");
      const match = /^(\d+\.?\d*|\.\d+)\s*([kmg]?)$/i.exec(given);
      field.setAttribute("aria-invalid", String(given !== "" && !match));
      return match ? Number(match[1]) * { "": 1, k: 1e3, m: 1e6, g: 1e9 }[match[2].toLowerCase()] : Infinity;
    };
    const filter = () => {
      const wanted = byId("text").value.toLowerCase().split(",").map((part) => part.trim().replace(/\s+/g, " "));
      const [params, madds] = [limit(byId("max-params")), limit(byId("max-madds"))];
      let count = 0;
      for (const { row, text, value } of rows) {
        const fits = wanted.every((part) => text.includes(part)) && value("params") <= params && value("madds") <= madds;
        row.hidden = !fits;
        count += fits;
      }
      const total = `${counted(rows.length)} ${rows.length === 1 ? "cell" : "cells"}`;
      byId("shown").textContent = count === rows.length ? total : `${counted(count)} of ${total}`;
      byId("none").hidden = count > 0;
    };
    const form = byId("filters");
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    filter();  // a browser that goes back fills the fields in
  }

  // Charts. Each is drawn when it comes near the screen, and after the page has been painted.

  let data = null;
  let cost = document.querySelector(".choose [aria-pressed=true]")?.dataset.cost;
  const drawn = new Map();
  const frames = new WeakMap();

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const colours = () =>
    Object.fromEntries(["paper", "ink", "muted", "rule", "faint", "accent", "warm", "dots"].map((name) => [name, colour(name)]));

  const valueAxis = (c, name, format, more = {}) => ({
    type: "value",
    name,
    nameLocation: "middle",
    nameTextStyle: { color: c.ink, fontSize: 12 },
    scale: true,
    axisLine: { show: true, onZero: false, lineStyle: { color: c.muted } },
    axisTick: { show: true, lineStyle: { color: c.muted }, length: 4 },
    splitLine: { lineStyle: { color: c.faint } },
    axisLabel: { color: c.muted, fontSize: 11, formatter: format, hideOverlap: true },
    ...more,
  });
  const narrow = innerWidth < 500;
  const across = { nameGap: 28, splitNumber: narrow ? 3 : 6 };
  const up = { nameGap: 48, splitNumber: 5 };
  const framed = (c, more) => ({
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    grid: { left: 66, right: 22, top: 14, bottom: 50 },
    tooltip: {
      backgroundColor: c.paper,
      borderColor: c.rule,
      borderWidth: 1,
      padding: [6, 9],
      textStyle: { color: c.ink, fontSize: 12 },
      extraCssText: "box-shadow:0 2px 8px rgb(0 0 0/15%)",
      confine: true,
      transitionDuration: 0,
      ...more.tooltip,
    },
    ...more.options,
  });
  const scatter = (c, points, size) => ({
    type: "scatter",
    data: points,
    symbolSize: points.length > 3000 ? 2.5 : size,
    large: true,
    largeThreshold: 3000,
    itemStyle: { color: c.dots },
    emphasis: { disabled: true },
  });

  const charts = {
    distribution(c) {
      const steps = data.counts.map((count, place) => [data.edges[place], count]);
      steps.push([data.edges.at(-1), 0]);
      return framed(c, {
        tooltip: {
          trigger: "axis",
          axisPointer: { type: "line", lineStyle: { color: c.muted } },
          formatter: ([at]) => {
            const place = Math.min(at.dataIndex, data.counts.length - 1);
            return `${tick(data.edges[place])} to ${tick(data.edges[place + 1])}<br><b>${counted(data.counts[place])}</b> cells`;
          },
        },
        options: {
          xAxis: valueAxis(c, "score", ticks(data.edges), { ...across, splitLine: { show: false } }),
          yAxis: valueAxis(c, "cells", short, { ...up, min: 0, minInterval: 1 }),
          series: [{
            type: "line",
            step: "end",
            data: [[data.edges[0], 0], ...steps],
            symbol: "none",
            lineStyle: { color: c.accent, width: 1.2 },
            areaStyle: { color: c.dots, opacity: 0.6 },
            emphasis: { disabled: true },
          }],
        },
      });
    },
    progress(c) {
      const points = data.number.map((number, place) => [number, data.score[place]]);
      const line = data.rises.map((place) => points[place]);
      line.push([data.number.at(-1), line.at(-1)[1]]);
      return framed(c, {
        tooltip: { trigger: "item", formatter: ({ value }) => `trial ${counted(value[0])}<br>score <b>${scored(value[1])}</b>` },
        options: {
          xAxis: valueAxis(c, "trial", short, { ...across, min: 0, minInterval: 1, splitLine: { show: false } }),
          yAxis: valueAxis(c, "score", ticks(data.score), up),
          series: [
            scatter(c, points, 4),
            { type: "line", step: "end", data: line, symbol: "circle", symbolSize: 4, itemStyle: { color: c.warm }, lineStyle: { color: c.warm, width: 1.6 }, emphasis: { disabled: true } },
          ],
        },
      });
    },
    cost(c) {
      const points = data[cost].map((value, place) => [value, data.score[place], data.number[place]]);
      const unit = cost === "params" ? "parameters" : "multiply-adds";
      return framed(c, {
        tooltip: {
          trigger: "item",
          formatter: ({ value }) => `trial ${counted(value[2])}<br>score <b>${scored(value[1])}</b><br>${counted(value[0])} ${unit}`,
        },
        options: {
          xAxis: valueAxis(c, unit, short, { ...across, splitLine: { show: false } }),
          yAxis: valueAxis(c, "score", ticks(data.score), up),
          series: [
            scatter(c, points, 4),
            { type: "line", step: "end", data: data.fronts[cost].map((place) => points[place]), symbol: "circle", symbolSize: 5, itemStyle: { color: c.warm }, lineStyle: { color: c.warm, width: 1.6 }, emphasis: { disabled: true } },
          ],
        },
      });
    },
    finals(c) {
      const points = data.finals.at.map((place, row) => [data.score[place], data.finals.final[row], data.number[place]]);
      return framed(c, {
        tooltip: {
          trigger: "item",
          formatter: ({ value }) => `trial ${counted(value[2])}<br>score <b>${scored(value[0])}</b><br>final <b>${scored(value[1])}</b>`,
        },
        options: {
          xAxis: valueAxis(c, "score of the search", ticks(points.map((point) => point[0])), { ...across, boundaryGap: ["2%", "2%"], splitLine: { show: false } }),
          yAxis: valueAxis(c, "final score", ticks(data.finals.final), { ...up, boundaryGap: ["2%", "2%"] }),
          series: [{ ...scatter(c, points, 6), itemStyle: { color: points.length > 300 ? c.dots : c.accent } }],
        },
      });
    },
    operators: (c) => dots(c, data.operators),
    inputs: (c) => dots(c, data.inputs),
    kinds: (c) => dots(c, data.kinds),
  };

  // A row for each name: the shares among all, the best tenth and the best hundredth as three marks on a line.
  const dots = (c, shares) => {
    const parts = [shares.best, shares.tenth, shares.all];
    const marks = [
      { symbol: "circle", symbolSize: 9, itemStyle: { color: c.warm } },
      { symbol: "diamond", symbolSize: 10, itemStyle: { color: c.accent } },
      { symbol: "circle", symbolSize: 8, itemStyle: { color: c.paper, borderColor: c.muted, borderWidth: 1.4 } },
    ];
    const ends = shares.name.map((_, row) => parts.map((part) => part[row]));
    const low = ends.map((values) => Math.min(...values));
    return framed(c, {
      tooltip: {
        trigger: "axis",
        axisPointer: { type: "none" },
        formatter: (found) => {
          const row = found[0].dataIndex;
          const lines = data.groups.map((group, part) => `${group}: <b>${percent(parts[part][row])}</b>`);
          return [echarts.format.encodeHTML(shares.name[row]), ...lines].join("<br>");
        },
      },
      options: {
        legend: { top: 0, left: 0, orient: narrow ? "vertical" : "horizontal", itemWidth: 10, itemHeight: 10, itemGap: 12, data: data.groups.map((name) => ({ name })), textStyle: { color: c.muted, fontSize: 11 }, selectedMode: false },
        grid: { left: 8, right: 22, top: narrow ? 66 : 40, bottom: 44, containLabel: true },
        xAxis: valueAxis(c, "share of branches", (value) => `${tick(100 * value)} %`, { ...across, min: 0, splitNumber: 4, scale: false }),
        yAxis: {
          type: "category",
          data: shares.name,
          inverse: true,
          axisLine: { show: false },
          axisTick: { show: false },
          axisLabel: { color: c.ink, fontSize: 11, interval: 0, width: narrow ? 130 : 200, overflow: "truncate" },
          splitLine: { show: true, lineStyle: { color: c.faint } },
        },
        series: [
          { type: "bar", stack: "range", data: low, itemStyle: { color: "transparent" }, barWidth: 2, silent: true },
          { type: "bar", stack: "range", data: ends.map((values, row) => Math.max(...values) - low[row]), itemStyle: { color: c.rule }, barWidth: 2, silent: true },
          ...parts.map((part, which) => ({
            type: "scatter",
            name: data.groups[which],
            data: part.map((share, row) => [share, row]),
            emphasis: { disabled: true },
            z: 5 - which,
            ...marks[which],
          })),
        ],
      },
    });
  };

  const draw = (node) => {
    data ??= JSON.parse(byId("data").textContent);
    const key = node.dataset.chart;
    let chart = drawn.get(node);
    if (!chart) {
      chart = echarts.init(node, null, { renderer: "canvas" });
      drawn.set(node, chart);
      new ResizeObserver(() => {
        cancelAnimationFrame(frames.get(node));
        frames.set(node, requestAnimationFrame(() => chart.resize()));
      }).observe(node);
    }
    chart.setOption(charts[key](colours()), true);
    node.dataset.drawn = isDark() ? "dark" : "light";
  };
  const redraw = () => { for (const node of drawn.keys()) draw(node); };
  const soon = window.requestIdleCallback ?? ((call) => setTimeout(call, 50));

  for (const button of all(".choose button")) {
    button.addEventListener("click", () => {
      cost = button.dataset.cost;
      for (const other of all(".choose button")) other.setAttribute("aria-pressed", String(other === button));
      const node = document.querySelector("[data-chart=cost]");
      if (drawn.has(node)) draw(node);
    });
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      soon(() => draw(entry.target));
    }
  }, { rootMargin: "300px" });
  requestAnimationFrame(() => setTimeout(() => { for (const node of all("[data-chart]")) near.observe(node); }));
  addEventListener("beforeprint", () => { for (const node of all("[data-chart]")) if (!drawn.has(node)) draw(node); });
})();
