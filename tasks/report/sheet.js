"use strict";
(() => {
  const form = document.getElementById("find");
  const tiles = [...document.querySelectorAll(".pm-grid li")];
  const apply = () => {
    const text = form.elements.text.value.toLowerCase();
    const bad = form.elements.bad?.checked ?? false;
    let count = 0;
    for (const tile of tiles) {
      const keep = tile.title.toLowerCase().includes(text) && (!bad || tile.querySelector(".pm-bad, .pm-torn"));
      tile.hidden = !keep;
      count += Boolean(keep);
    }
    document.getElementById("shown").textContent = `${count} of ${tiles.length} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
