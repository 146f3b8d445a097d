"use strict";
// Everything here is an addition: without it the tables, plots and the gallery still read.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  root.classList.add("js");

  // Light, dark, or what the system says.
  const remembered = { get: () => null, set: () => {} };
  try {
    localStorage.getItem("theme"); // throws where storage is off
    remembered.get = () => localStorage.getItem("theme");
    remembered.set = (theme) => localStorage.setItem("theme", theme);
  } catch { /* the choice then lasts as long as the page */ }
  const themes = ["auto", "light", "dark"];
  const button = document.createElement("button");
  button.type = "button";
  const paint = (theme) => {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = themes.includes(remembered.get()) ? remembered.get() : "auto";
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    remembered.set(theme);
    paint(theme);
  });
  paint(theme);
  document.getElementById("tools").append(button);

  // Which section is read now.
  const links = new Map(all(".jump a").map((link) => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) { link.classList.remove("here"); link.removeAttribute("aria-current"); }
      const link = links.get(entry.target.id);
      link.classList.add("here");
      link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-30% 0px -65% 0px" });
  for (const id of links.keys()) watch.observe(document.getElementById(id));

  // Plots: what a mark stands for, where the pointer is or by the arrow keys.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  const said = document.createElement("div");
  said.className = "sr";
  said.setAttribute("role", "status");
  document.body.append(tip, said);
  for (const title of all("svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const tell = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const below = y + 18 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? y + 18 : y - tip.offsetHeight - 10}px`;
  };
  const short = (value) => Number(value.toPrecision(3));
  // the values along the lines of a plot, in the plot's own pixels
  const linesOf = (plot) => {
    const [left, top, right, bottom, x0, x1, y0, y1] = plot.dataset.frame.split(" ").map(Number);
    return all(".series", plot).reverse().map((series) => ({
      series,
      points: series.querySelector(".line").getAttribute("points").split(" ").map((pair) => {
        const [x, y] = pair.split(",").map(Number);
        const at = x0 + (x - left) / (right - left) * (x1 - x0);
        const value = y0 + (bottom - y) / (bottom - top) * (y1 - y0);
        return { x, y, text: `${series.dataset.tip}: ${plot.dataset.x} ${short(at)}, ${plot.dataset.y} ${short(value)}` };
      }),
    }));
  };
  const cursorOf = (plot) => {
    let cursor = plot.querySelector(".cursor");
    if (!cursor) {
      cursor = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      cursor.setAttribute("class", "cursor");
      cursor.setAttribute("r", "4.5");
      plot.append(cursor);
    }
    return cursor;
  };
  const point = (plot, { x, y }) => {
    const cursor = cursorOf(plot);
    cursor.setAttribute("cx", x);
    cursor.setAttribute("cy", y);
  };
  const leave = (plot) => {
    plot.querySelector(".cursor")?.remove();
    for (const mark of all(".at", plot)) mark.classList.remove("at");
    tip.hidden = true;
  };
  for (const plot of all("svg.plot, svg.stacked, svg.calendar")) {
    let lines = null;
    const isLines = plot.dataset.frame !== undefined;
    const marks = isLines ? [] : all("[data-tip]", plot);
    if (!isLines && !marks.length) continue;
    plot.addEventListener("pointerleave", () => leave(plot));
    plot.addEventListener("pointermove", (event) => {
      if (!isLines) {
        const mark = event.target.closest("[data-tip]");
        if (mark) tell(mark.dataset.tip, event.clientX, event.clientY);
        else tip.hidden = true;
        return;
      }
      lines ??= linesOf(plot);
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(plot.getScreenCTM().inverse());
      let best = null;
      let least = 30 ** 2; // farther from any line than that, nothing is meant
      for (const line of lines) {
        for (const each of line.points) {
          const distance = (each.x - place.x) ** 2 + (each.y - place.y) ** 2;
          if (distance < least) [best, least] = [each, distance];
        }
      }
      if (!best) return leave(plot);
      point(plot, best);
      tell(best.text, event.clientX, event.clientY);
    });
    // the keyboard's way
    plot.tabIndex = 0;
    let [row, column] = [0, -1];
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (event.key === "Escape") return leave(plot);
      if (!step) return;
      event.preventDefault();
      const box = plot.getBoundingClientRect();
      let text = "";
      if (isLines) {
        lines ??= linesOf(plot);
        row = (row + step[0] + lines.length) % lines.length;
        const { points } = lines[row];
        column = Math.min(Math.max(column + step[1] * Math.ceil(points.length / 40), 0), points.length - 1);
        point(plot, points[column]);
        text = points[column].text;
      } else {
        column = Math.min(Math.max(column + step[0] + step[1], 0), marks.length - 1);
        for (const mark of marks) mark.classList.toggle("at", mark === marks[column]);
        text = marks[column].dataset.tip;
      }
      said.textContent = text;
      tell(text, box.left + 20, box.top - 8);
    });
    plot.addEventListener("blur", () => leave(plot));
  }

  // Tables sorted by a click on a heading; undefined numbers always last.
  const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((heading, column) => {
      const numeric = heading.classList.contains("num");
      const press = document.createElement("button");
      press.type = "button";
      press.append(...heading.childNodes);
      heading.append(press);
      heading.setAttribute("aria-sort", "none");
      press.addEventListener("click", () => {
        const before = heading.getAttribute("aria-sort");
        const down = before === "none" ? numeric : before === "ascending";
        for (const other of all("thead th", table)) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const cell = row.cells[column];
          // counts have their thousands apart
          const text = (cell.dataset.value ?? cell.textContent).replace(/[\u202f,]/g, "");
          return numeric ? parseFloat(text.replace("\u2212", "-")) : cell.textContent.trim();
        };
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (!numeric) return down ? order.compare(y, x) : order.compare(x, y);
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return down ? y - x : x - y;
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  const form = document.getElementById("controls");
  if (!form) return;

  // Gallery: layers, filters, order.
  const grid = document.getElementById("tiles");
  const tiles = all(".tile", grid);
  const shown = document.getElementById("shown");
  const classed = (tile, wanted, score, hidden) => {
    for (const { name, value } of tile.attributes) {
      if (!name.startsWith("data-classes-") || hidden.has(`m${name.slice(13)}`)) continue;
      for (const entry of value.split(" ")) {
        const [number, best] = entry.split(":");
        if (number === wanted && Number(best) >= score) return true;
      }
    }
    return false;
  };
  const shapes = all(".shape");
  const apply = () => {
    const hidden = new Set();
    for (const box of form.querySelectorAll("[name=hide]")) {
      document.body.classList.toggle(`hide-${box.value}`, !box.checked);
      if (!box.checked) hidden.add(box.value);
    }
    const score = Number(form.elements.score.value);
    const wanted = form.elements.class?.value ?? "";
    const reason = form.elements.reason.value;
    const folder = form.elements.folder?.value ?? "";
    const text = form.elements.text.value.toLowerCase();
    document.getElementById("score-out").textContent = score.toFixed(2);
    grid.dataset.size = form.elements.size.value;
    for (const shape of shapes) {
      const other = wanted !== "" && shape.dataset.class !== wanted;
      shape.classList.toggle("off", other || Number(shape.dataset.score) < score);
    }
    let count = 0;
    for (const tile of tiles) {
      const keep = (reason === "" || tile.dataset.reasons.split(" ").includes(reason))
        && (folder === "" || tile.dataset.folder === folder)
        && (text === "" || tile.dataset.path.toLowerCase().includes(text))
        && (wanted === "" || classed(tile, wanted, score, hidden));
      tile.classList.toggle("gone", !keep);
      count += keep;
    }
    shown.textContent = count === tiles.length ? `${count} images shown` : `${count} of ${tiles.length} images shown`;
  };
  const arrange = () => {
    const [key, direction] = form.elements.order.value.split(":");
    const sign = direction === "down" ? -1 : 1;
    const compare = (a, b) => {
      if (key === "path") return order.compare(a.dataset.path, b.dataset.path);
      const [x, y] = [parseFloat(a.dataset[key]), parseFloat(b.dataset[key])];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return sign * (x - y);
    };
    grid.append(...(key === "" ? tiles : [...tiles].sort(compare)));
  };
  let pending = 0; // a slider sends more than a screen can show
  form.addEventListener("input", () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(apply);
  });
  form.elements.order.addEventListener("change", arrange);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();

  // One image enlarged; the address names it, so a link leads back to it.
  const viewer = document.getElementById("viewer");
  const stage = document.getElementById("viewer-stage");
  const details = document.getElementById("viewer-details");
  const visible = () => all(".tile:not(.gone)", grid);
  const current = () => tiles.find((tile) => `#${tile.id}` === decodeURIComponent(location.hash));
  const switches = [...form.querySelectorAll("[name=hide]")].map((box) => {
    const press = document.createElement("button");
    press.type = "button";
    press.textContent = box.parentNode.textContent.trim();
    press.addEventListener("click", () => box.click());
    const follow = () => press.setAttribute("aria-pressed", String(box.checked));
    box.addEventListener("input", follow);
    follow();
    return press;
  });
  document.getElementById("viewer-layers").append(...switches);
  const show = (tile) => {
    document.getElementById("viewer-title").textContent = tile.dataset.path;
    const copy = tile.querySelector(".stage").cloneNode(true);
    const plain = document.createElement("div");
    plain.className = "stage";
    plain.append(...copy.childNodes);
    stage.replaceChildren(plain);
    details.replaceChildren(...all(".about > :not(.line)", tile).map((part) => part.cloneNode(true)));
    for (const part of all("details", details)) part.open = true;
    details.scrollTop = 0;
    if (!viewer.open) viewer.showModal();
  };
  const follow = () => {
    const tile = current();
    if (tile) show(tile);
    else if (viewer.open) viewer.close();
  };
  const step = (by) => {
    const near = visible();
    const at = near.indexOf(current());
    if (near.length) location.replace(`#${near[(at + by + near.length) % near.length].id}`);
  };
  viewer.addEventListener("close", () => {
    const tile = current();
    if (!tile) return;
    history.replaceState(null, "", location.pathname + location.search);
    tile.querySelector("a.stage").focus({ preventScroll: false });
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  // on the document: a step moves the focus out of the dialog
  document.addEventListener("keydown", (event) => {
    if (!viewer.open) return;
    if (event.target.closest?.("input, select")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("close").addEventListener("click", () => viewer.close());
  addEventListener("hashchange", follow);
  follow();
})();
