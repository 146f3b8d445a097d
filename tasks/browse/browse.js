"use strict";
// Everything that is shown comes as text from the server and stays text: no markup is ever parsed.
(() => {
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  const make = (tag, css, text) => {
    const node = document.createElement(tag);
    if (css) node.className = css;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = new Intl.NumberFormat("en");
  const problem = (text) => { $("problem").textContent = text; $("problem").hidden = !text; };
  const ask = async (address) => {
    let answer;
    try { answer = await fetch(address); } catch { throw new Error("The server has ended; start it again."); }
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  };

  // Light, dark, or what the system says.
  const themes = ["auto", "light", "dark"];
  let theme = 0;
  $("theme").addEventListener("click", () => {
    theme = (theme + 1) % 3;
    if (theme) root.dataset.theme = themes[theme];
    else delete root.dataset.theme;
    $("theme").textContent = `Theme: ${themes[theme]}`;
  });

  // The images found: a window onto rows that are fetched as they come into view.
  const PAGE = 60;
  const HIGHEST = 15_000_000; // browsers cannot scroll through taller boxes
  const form = $("filter");
  const scroller = $("scroller");
  const grid = $("grid");
  let total = 0;
  let version = 0;
  let pages = new Map();
  let cells = new Map();
  let query = "";
  let round = 0;
  const shape = () => {
    const edge = Number(form.elements.size.value);
    const columns = Math.max(1, Math.floor((grid.clientWidth + 10) / (edge + 10)));
    const width = (grid.clientWidth + 10) / columns - 10;
    return { columns, width, height: Math.round(width * 0.75) + 24 };
  };
  const rowOf = (index) => pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  const need = async (page) => {
    if (pages.has(page)) return;
    pages.set(page, []);
    const mine = round;
    try {
      const found = await ask(`api/images?${query}&offset=${page * PAGE}&limit=${PAGE}`);
      if (mine !== round) return;
      pages.set(page, found.rows);
      if (found.total !== total || page === 0) {
        total = found.total;
        $("count").textContent = `${number.format(total)} ${total === 1 ? "image" : "images"}`;
        layOut();
      }
      for (const [index, cell] of cells) if (Math.floor(index / PAGE) === page) fill(cell, index);
    } catch (error) {
      if (mine === round) { pages.delete(page); problem(error.message); $("count").textContent = ""; }
    }
  };
  const fill = (cell, index) => {
    const row = rowOf(index);
    if (!row || cell.dataset.done) return;
    cell.dataset.done = "1";
    const base = row.path.split("/").at(-1);
    if (row.image_id && !row.reason) {
      cell.href = `#image=${row.image_id}`;
      const picture = make("img");
      picture.alt = row.path;
      picture.decoding = "async";
      picture.addEventListener("error", async () => {
        picture.remove();
        const why = make("span", "why", "not readable");
        cell.append(why);
        try { await ask(`thumbnail/${row.image_id}`); } catch (error) { why.textContent = error.message; }
      });
      picture.src = `thumbnail/${row.image_id}`;
      cell.append(picture);
    } else {
      if (row.image_id) cell.href = `#image=${row.image_id}`;
      cell.append(make("span", "why", row.reason || "not readable"));
    }
    const name = make("span", "name");
    const path = make("span");
    path.append(make("bdi", "", base));
    name.append(path);
    if (row.score !== null) name.append(make("span", "hit", row.score.toFixed(2)));
    else if (row.boxes) name.append(make("span", "hit", String(row.boxes)));
    cell.title = row.path;
    cell.append(name);
  };
  const layOut = () => {
    const { columns, width, height } = shape();
    const rows = Math.ceil(total / columns);
    grid.style.height = `${Math.min(rows * (height + 10), HIGHEST)}px`;
    const first = Math.max(0, Math.floor(scroller.scrollTop / (height + 10)) - 2);
    const last = Math.min(rows, first + Math.ceil(scroller.clientHeight / (height + 10)) + 5);
    const wanted = new Set();
    for (let index = first * columns; index < Math.min(last * columns, total); index++) wanted.add(index);
    for (const [index, cell] of cells) {
      if (!wanted.has(index)) { cell.remove(); cells.delete(index); }
    }
    for (const index of wanted) {
      let cell = cells.get(index);
      if (!cell) {
        const item = make("div");
        item.setAttribute("role", "listitem");
        cell = make("a", "cell");
        cell.tabIndex = 0;
        cell.dataset.index = index;
        item.append(cell);
        // focus goes through the images in their order
        const after = [...cells.keys()].filter((each) => each > index).sort((a, b) => a - b)[0];
        grid.insertBefore(item, after === undefined ? null : cells.get(after).parentNode);
        const remove = cell.remove.bind(cell);
        cell.remove = () => { remove(); item.remove(); };
        cells.set(index, cell);
      }
      cell.style.left = `${(index % columns) * (width + 10)}px`;
      cell.style.top = `${Math.floor(index / columns) * (height + 10)}px`;
      cell.style.width = `${width}px`;
      cell.style.height = `${height}px`;
      fill(cell, index);
      need(Math.floor(index / PAGE));
    }
  };
  const search = () => {
    round += 1;
    problem("");
    const asked = new URLSearchParams();
    for (const [name, value] of new FormData(form)) if (name !== "size" && value) asked.set(name, value);
    query = asked.toString();
    for (const cell of cells.values()) cell.remove();
    [pages, cells, total] = [new Map(), new Map(), 0];
    scroller.scrollTop = 0;
    $("count").textContent = "Looking…";
    need(0);
  };
  let pending = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(pending);
    if (event.target.name === "size") return layOut();
    pending = setTimeout(search, 250);
  });
  form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
  let frame = 0;
  const soon = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(layOut); };
  scroller.addEventListener("scroll", soon);
  new ResizeObserver(soon).observe(scroller);
  const focusOn = (index) => {
    const { columns, height } = shape();
    const top = Math.floor(index / columns) * (height + 10);
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + height > scroller.scrollTop + scroller.clientHeight - 24) scroller.scrollTop = top + height - scroller.clientHeight + 24;
    layOut();
    cells.get(index)?.focus({ preventScroll: true });
  };
  grid.addEventListener("keydown", (event) => {
    const at = Number(event.target.dataset?.index);
    if (Number.isNaN(at)) return;
    const { columns } = shape();
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!by) return;
    event.preventDefault();
    const to = at + by;
    if (to >= 0 && to < total) focusOn(to);
  });

  // One image, by each model.
  const viewer = $("viewer");
  const hidden = new Set();
  const hiddenModels = new Set();
  let current = null;
  let opened = -1;
  const SVG = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const overlays = (layer) => {
    const drawn = [];
    if (layer.regions_uri) {
      const regions = make("img", "regions");
      regions.src = layer.regions_uri;
      regions.alt = "";
      drawn.push(regions);
    }
    if (layer.outline_size) {
      const svg = draw("svg", { class: "masks", viewBox: `0 0 ${layer.outline_size[1]} ${layer.outline_size[0]}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      for (const box of layer.boxes) if (box.outline) svg.append(draw("path", { class: `shape ${box.css}`, "data-score": box.score, "fill-rule": "evenodd", d: box.outline }));
      drawn.push(svg);
    }
    if (layer.boxes.length) {
      const svg = draw("svg", { class: "boxes", "aria-hidden": "true" });
      for (const box of layer.boxes) {
        const one = draw("g", { class: `shape ${box.css}`, "data-score": box.score });
        one.append(
          draw("rect", { x: `${box.left}%`, y: `${box.top}%`, width: `${box.width}%`, height: `${box.height}%`, rx: 2 }),
          draw("text", { x: `${box.left}%`, y: `${box.top}%`, dx: 3, dy: box.top < 6 ? 13 : -5 }, `${box.class_name} ${box.score.toFixed(2)}`),
        );
        svg.append(one);
      }
      drawn.push(svg);
    }
    return drawn;
  };
  const chips = (entries) => {
    const list = make("ul", "chips");
    for (const [css, text, score] of entries) {
      const chip = make("li", `chip ${css}${score === undefined ? "" : " shape"}`);
      if (score !== undefined) chip.dataset.score = score;
      chip.append(make("span", `dot ${css}`), text);
      list.append(chip);
    }
    return list;
  };
  const panelOf = (found, model) => {
    const panel = make("section", "panel");
    panel.dataset.model = model?.key ?? "";
    const title = make("h3", "", model ? `${model.name} ` : "Not scored");
    if (model) title.append(make("small", "", `${model.key}${model.status === "ok" ? "" : `, ${model.status}`}`));
    const stage = make("div", "stage");
    const box = make("div", "frame");
    const ratio = found.width && found.height ? found.width / found.height : 4 / 3;
    box.style.setProperty("--ratio", ratio);
    stage.style.aspectRatio = Math.max(ratio, 0.8);
    const picture = make("img", "picture");
    picture.alt = found.path;
    picture.addEventListener("error", () => picture.replaceWith(make("p", "lost", "The picture cannot be read.")));
    picture.src = `picture/${found.image_id}`;
    box.append(picture);
    stage.append(box);
    panel.append(title, stage);
    if (!model) return panel;
    const { layer } = model;
    box.append(...overlays(layer));
    for (const text of layer.captions) panel.append(make("p", "said captions", text));
    if (layer.labels.length) panel.append(chips(layer.labels.slice(0, 5).map((each) => [each.css, `${each.class_name} ${each.score.toFixed(2)}`])));
    if (layer.regions.length) panel.append(chips(layer.regions.slice(0, 12).map((each) => [each.css, `${each.class_name} ${(100 * each.share).toFixed(0)} %`])));
    if (layer.boxes.length) panel.append(chips(layer.boxes.toReversed().map((each) => [each.css, `${each.class_name} ${each.score.toFixed(2)}`, each.score])));
    if (layer.num_boxes > layer.boxes.length) panel.append(make("p", "said", `The best ${layer.boxes.length} of ${layer.num_boxes} boxes.`));
    return panel;
  };
  const apply = () => {
    const least = Number($("least").value);
    $("least-out").textContent = least.toFixed(2);
    for (const shape of viewer.querySelectorAll(".shape")) shape.classList.toggle("off", Number(shape.dataset.score) < least);
    for (const press of document.querySelectorAll("[data-layer]")) {
      viewer.classList.toggle(`hide-${press.dataset.layer}`, hidden.has(press.dataset.layer));
      press.setAttribute("aria-pressed", String(!hidden.has(press.dataset.layer)));
    }
    for (const press of document.querySelectorAll("#models button")) press.setAttribute("aria-pressed", String(!hiddenModels.has(press.dataset.key)));
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = hiddenModels.has(panel.dataset.model);
  };
  const toggle = (set, key) => { if (!set.delete(key)) set.add(key); apply(); };
  const show = async (imageId) => {
    current = imageId;
    let found;
    try { found = await ask(`api/image/${imageId}`); } catch (error) { problem(error.message); return; }
    if (current !== imageId) return;
    $("viewer-title").textContent = `${found.collection}: ${found.path}${found.width ? `, ${found.width} × ${found.height}` : ""}`;
    const panels = found.models.length ? found.models.map((model) => panelOf(found, model)) : [panelOf(found, null)];
    for (const failure of found.failures) {
      const text = `${failure.model ?? "all models"}: failed in ${failure.stage}, ${failure.reason}: ${failure.message}`;
      panels[0].append(make("p", "said lost", text));
    }
    $("panels").replaceChildren(...panels);
    $("models").replaceChildren(...(found.models.length > 1 ? found.models : []).map((model) => {
      // versions of one model are told apart by their keys
      const isAlone = found.models.filter((other) => other.name === model.name).length === 1;
      const press = make("button", "", isAlone ? model.name : model.key);
      press.type = "button";
      press.title = model.key;
      press.dataset.key = model.key;
      press.addEventListener("click", () => toggle(hiddenModels, model.key));
      return press;
    }));
    apply();
    if (!viewer.open) viewer.showModal();
  };
  const hashId = () => /^#image=([0-9a-f]{32})$/.exec(location.hash)?.[1] ?? null;
  const follow = () => {
    const wanted = hashId();
    if (wanted) show(wanted);
    else if (viewer.open) viewer.close();
  };
  const step = async (by) => {
    let at = [...pages].flatMap(([page, rows]) => rows.map((row, i) => [page * PAGE + i, row])).find(([, row]) => row.image_id === current)?.[0] ?? opened;
    for (at += by; at >= 0 && at < total; at += by) {
      await need(Math.floor(at / PAGE));
      const row = rowOf(at);
      if (!row) return;
      if (row.image_id) {
        opened = at;
        location.replace(`#image=${row.image_id}`);
        return;
      }
    }
  };
  grid.addEventListener("click", (event) => { opened = Number(event.target.closest(".cell")?.dataset.index ?? -1); });
  for (const press of document.querySelectorAll("[data-layer]")) press.addEventListener("click", () => toggle(hidden, press.dataset.layer));
  $("least").addEventListener("input", apply);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => {
    if (hashId()) history.replaceState(null, "", location.pathname);
    if (opened >= 0) focusOn(opened);
  });
  addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target.matches?.("input:not([type=range]), select");
    if (!viewer.open) {
      if (event.key === "/" && !isTyping) { event.preventDefault(); form.elements.text.focus(); }
      return;
    }
    const layer = { b: "boxes", m: "masks", r: "regions", c: "captions" }[event.key];
    if (layer) toggle(hidden, layer);
    else if (event.target.id === "least") return;
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });

  // What there is to choose from; and whether a run has published more since.
  const facets = async () => {
    const found = await ask("api/facets");
    version = found.version;
    for (const [name, entries] of [["model", found.models], ["collection", found.collections]]) {
      const select = form.elements[name];
      const chosen = select.value;
      select.replaceChildren(new Option("all", ""), ...entries.map(([value, count]) => new Option(`${value} (${number.format(count)})`, value)));
      select.value = chosen;
    }
    $("classes").replaceChildren(...found.classes.map(([name, count]) => {
      const option = new Option(number.format(count), name);
      return option;
    }));
  };
  const begin = async () => {
    $("news").hidden = true;
    try { await facets(); } catch (error) { problem(error.message); return; }
    search();
  };
  $("news").addEventListener("click", begin);
  setInterval(async () => {
    if (document.hidden) return;
    try { const now = await ask("api/version"); $("news").hidden = !now.changed && now.version === version; } catch { /* the next request says so */ }
  }, 10_000);
  begin().then(follow);
})();
