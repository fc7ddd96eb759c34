"use strict";
// The page is complete without this script, which adds reading off values, hiding runs and the logarithmic axis.
(() => {
  const points = new Map(JSON.parse(document.getElementById("points").textContent).map((p) => [p.id, p.series]));
  const hidden = new Set();
  const panels = [...document.querySelectorAll(".panel")].map((panel) => new Plot(panel));
  const number = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && size < 1e-3) return value.toExponential(3).replaceAll("-", "−");
    const digits = Math.max(0, 3 - Math.floor(Math.log10(Math.max(size, 1))));
    return value.toFixed(digits).replace("-", "−");
  };

  /** The index of the value in `steps` that is nearest to `step`. */
  function nearest(steps, step) {
    let low = 0;
    let high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  }

  function Plot(panel) {
    const plot = panel.querySelector(".plot");
    const charts = [...plot.querySelectorAll(".chart")];
    const series = points.get(panel.dataset.panel);
    const last = Number(panel.dataset.last);
    const axis = charts[0].querySelector(".axis");
    const [left, right, bottom] = ["x1", "x2", "y1"].map((name) => Number(axis.getAttribute(name)));
    const top = Number(charts[0].querySelector(".cursor").getAttribute("y1"));
    const at = panel.querySelector(".readout .at");
    let step = null;

    const place = (chart, value) => {
      const [low, high] = [Number(chart.dataset.low), Number(chart.dataset.high)];
      const share = chart.dataset.scale === "linear" ? (value - low) / (high - low) : Math.log(value / low) / Math.log(high / low);
      return bottom - (bottom - top) * share;
    };

    const show = () => {
      panel.querySelectorAll(".dot").forEach((dot) => dot.remove());
      // The cursor snaps to the nearest step that is drawn, of any visible curve.
      let found = step;
      if (step !== null) {
        const steps = series.filter(([run]) => !hidden.has(run)).map(([, xs]) => xs[nearest(xs, step)]);
        if (steps.length) found = steps.reduce((best, x) => (Math.abs(x - step) < Math.abs(best - step) ? x : best));
      }
      at.textContent = step === null ? "At the end" : `Step ${found.toLocaleString("en-US")}`;
      for (const [run, xs, ys] of series) {
        const index = step === null ? xs.length - 1 : nearest(xs, found);
        const value = panel.querySelector(`.readout [data-run="${run}"] b`);
        // A run that is shorter than others has no value beyond its last step.
        const apart = Math.max(1, (1.5 * (xs[xs.length - 1] - xs[0])) / Math.max(1, xs.length - 1));
        const there = step === null || Math.abs(xs[index] - found) <= apart;
        value.textContent = there ? number(ys[index]) : "–";
        if (step === null || hidden.has(run) || !there) continue;
        for (const chart of charts) {
          const y = place(chart, ys[index]);
          if (!Number.isFinite(y)) continue;
          const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
          dot.setAttribute("class", `dot ${chart.querySelector(`.curve[data-run="${run}"]`).getAttribute("class").replace("curve", "")}`);
          dot.setAttribute("cx", left + ((right - left) * xs[index]) / last);
          dot.setAttribute("cy", y);
          dot.setAttribute("r", 3);
          chart.append(dot);
        }
      }
      for (const cursor of panel.querySelectorAll(".cursor")) {
        cursor.toggleAttribute("hidden", step === null);
        if (step === null) continue;
        const x = left + ((right - left) * found) / last;
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
      }
    };

    const point = (event) => {
      const chart = charts.find((chart) => !chart.hasAttribute("hidden"));
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      step = Math.min(last, Math.max(0, ((x - left) / (right - left)) * last));
      show();
    };
    const leave = () => {
      step = null;
      show();
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    plot.addEventListener("blur", leave);
    plot.addEventListener("keydown", (event) => {
      // The arrow keys move over the steps of the visible run that has the most points.
      const shown = series.filter(([run]) => !hidden.has(run));
      if (!shown.length) return;
      const steps = shown.reduce((most, one) => (one[1].length > most[1].length ? one : most))[1];
      const now = step === null ? steps.length - 1 : nearest(steps, step);
      const by = event.shiftKey ? Math.max(1, Math.round(steps.length / 20)) : 1;
      const moves = { ArrowLeft: now - by, ArrowRight: now + by, Home: 0, End: steps.length - 1 };
      if (event.key === "Escape") leave();
      else if (event.key in moves) {
        step = steps[Math.min(steps.length - 1, Math.max(0, moves[event.key]))];
        show();
      } else return;
      event.preventDefault();
    });
    this.show = show;
    this.scale = (logarithmic) => {
      const wanted = charts.find((chart) => chart.dataset.scale === (logarithmic ? "logarithmic" : "linear")) ?? charts[0];
      charts.forEach((chart) => chart.toggleAttribute("hidden", chart !== wanted));
    };
  }

  for (const box of document.querySelectorAll("[data-toggle]")) {
    const set = () => {
      const run = Number(box.dataset.toggle);
      if (box.checked) hidden.delete(run);
      else hidden.add(run);
      document.querySelectorAll(`.panel [data-run="${run}"]`).forEach((part) => part.toggleAttribute("hidden", !box.checked));
      panels.forEach((panel) => panel.show());
    };
    box.addEventListener("change", set);
    // On going back, browsers restore the checkboxes of the earlier visit.
    if (!box.checked) set();
  }
  const logarithmic = document.getElementById("logarithmic");
  const scale = () => panels.forEach((panel) => panel.scale(logarithmic.checked));
  logarithmic?.addEventListener("change", scale);
  if (logarithmic?.checked) scale();
})();
