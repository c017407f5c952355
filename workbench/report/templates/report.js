"use strict";
// Tables sort by a click on a header, and long ones start with their first rows.
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    header.append(button);
    const isNumber = header.classList.contains("number");
    const key = (row) => {
      const cell = row.cells[column];
      if (!isNumber) return cell.textContent;
      return cell.dataset.value ? Number(cell.dataset.value.replace("inf", "Infinity")) : NaN;
    };
    button.addEventListener("click", () => {
      const first = isNumber ? "descending" : "ascending";
      const other = isNumber ? "ascending" : "descending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      for (const each of table.querySelectorAll("th")) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        if (!isNumber) return sign * a.localeCompare(b, "en", { numeric: true });
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // undefined ones last
        return a === b ? 0 : sign * (a < b ? -1 : 1);
      };
      const rows = [...body.rows].map((row) => [key(row), row]);
      body.append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
    });
  });
  if (body.rows.length > 20) {
    table.classList.add("clipped");
    const more = document.createElement("button");
    more.className = "more";
    more.textContent = `Show all ${body.rows.length} rows`;
    more.addEventListener("click", () => {
      table.classList.remove("clipped");
      more.remove();
    });
    table.parentElement.after(more);
  }
}

// The page of latents: a list to search and sort on the left, one latent on the right.
for (const component of document.querySelectorAll(".latents")) {
  const list = component.querySelector(".list");
  const pane = component.querySelector(".detail");
  const search = component.querySelector("input");
  const sort = component.querySelector("select");
  const items = [...list.children];
  const prefix = `#${component.dataset.name}-`;
  const articles = new Map();
  for (const child of [...pane.children]) {
    const article = child.tagName === "TEMPLATE" ? child.content.querySelector("article") : child;
    if (article.dataset.latent) articles.set(article.dataset.latent, article);
  }
  let current = null;

  const select = (item, focus = false) => {
    if (!item) return;
    if (current) current.removeAttribute("aria-current");
    current = item;
    item.setAttribute("aria-current", "true");
    pane.replaceChildren(articles.get(item.dataset.index));
    pane.scrollTop = 0;
    const above = item.offsetTop - list.offsetTop;
    if (above < list.scrollTop || above + item.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = above - list.clientHeight / 2;
    }
    if (focus) {
      history.replaceState(null, "", prefix + item.dataset.index);
      list.focus({ preventScroll: true });
    }
  };
  const visible = () => [...list.children].filter((item) => !item.hidden);
  const refresh = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of items) item.hidden = !words.every((word) => item.dataset.search.includes(word));
    const left = visible();
    component.querySelector(".count").textContent = left.length;
    if (left.length && !left.includes(current)) select(left[0]);
  };
  const arrange = () => {
    const sign = sort.value.startsWith("-") ? -1 : 1;
    const key = sort.value.replace("-", "");
    const value = (item) => (key === "order" ? items.indexOf(item) : Number(item.dataset[key]));
    list.append(...items.map((item) => [value(item), item]).sort(([a], [b]) => sign * (a - b)).map(([, item]) => item));
    list.scrollTop = 0;
  };
  const byIndex = (index) => items.find((item) => item.dataset.index === index);

  search.addEventListener("input", refresh);
  sort.addEventListener("change", arrange);
  component.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    select(link.closest("li") || byIndex(link.dataset.go), true);
  });
  component.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target === sort || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const shown = visible();
    select(shown[Math.min(shown.length - 1, Math.max(0, shown.indexOf(current) + step))], event.target !== search);
  });
  const fromAddress = () => location.hash.startsWith(prefix) && byIndex(location.hash.slice(prefix.length));
  window.addEventListener("hashchange", () => {
    if (fromAddress()) select(fromAddress());
  });
  select(fromAddress() || items[0]);
  if (fromAddress()) component.scrollIntoView();
}
