// The rows of a page: filters, a search, and one page of rows with the details of one. Data is
// set as text, never as HTML. Without this script, the page has the table of the first rows.
(async () => {
  const place = document.querySelector(".wb-page");
  const data = document.getElementById("listing").textContent;
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const zipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const lines = (await new Response(zipped).text()).split("\n").filter(Boolean);
  const about = JSON.parse(lines[0]);
  const rows = lines.slice(1).map((line) => JSON.parse(line));
  const PAGE = 20;
  let filter = about.filters[0][0], words = "", at = 0, found = [];

  const make = (tag, kind, text = "", ...children) => {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    if (text) node.textContent = text;
    node.append(...children);
    return node;
  };
  const button = (text, act) => {
    const node = make("button", "", text);
    node.onclick = act;
    return node;
  };
  const plain = (text) => text.toLowerCase().split(/\s+/).filter(Boolean).join(" ");
  const textOf = (row) => {
    row.text ??= plain([row[1], row[2].map((part) => part[2])].flat(9).join("\n"));
    return row.text;
  };
  const widths = { id: "1fr", prompt: "3fr" };
  const grid = "2.4em " + about.columns.map((one) => `minmax(0, ${widths[one] ?? "1.4fr"})`).join(" ");
  const line = (tag, kind, cells) => {
    const node = make(tag, `wb-line ${kind}`, "", ...cells.map((cell) => make("span", "", cell)));
    node.style.gridTemplateColumns = grid;
    return node;
  };
  const shape = {
    facts: ([label, text]) => [make("span", "", "", make("b", "", label), ` ${text}`), " "],
    calls: ([label, text]) =>
      [make("details", "", "", make("summary", "", label), make("pre", "", text))],
    other: ([label, text]) => [make("i", "", label), make("pre", "", text)],
  };
  const section = ([kind, title, texts]) => make("section", `wb-${kind}`, "",
    make("h4", "", title), ...texts.flatMap(shape[kind] ?? shape.other));

  const list = make("div", "wb-list"), details = make("div", "wb-details");
  const where = make("span"), which = make("span");
  const filters = about.filters.map(([name, states]) => {
    const count = rows.filter((row) => states.includes(row[0])).length;
    const node = button(`${name} ${count.toLocaleString("en")}`, () => { filter = name; find(); });
    node.dataset.name = name;
    return node;
  });
  const search = Object.assign(make("input"), { type: "search", placeholder: "search all texts" });
  search.oninput = () => { words = plain(search.value); find(); };

  function find() {
    const states = about.filters.find(([name]) => name === filter)[1];
    found = rows.filter((row) => states.includes(row[0]) && (!words || textOf(row).includes(words)));
    open(0);
  }
  function open(number, focus = false) {
    at = Math.max(0, Math.min(number, found.length - 1));
    const start = at - at % PAGE, shown = found.slice(start, start + PAGE);
    const buttons = shown.map((row, i) => {
      const kind = `wb-${row[0].split(" ")[0]}${start + i === at ? " wb-open" : ""}`;
      const node = line("button", kind, [about.marks[row[0]], ...row[1]]);
      node.onclick = () => open(start + i, true);
      return node;
    });
    list.replaceChildren(line("div", "wb-names", ["", ...about.columns]), ...buttons);
    details.replaceChildren(...(found.length ? found[at][2].map(section) : []));
    for (const node of filters) node.setAttribute("aria-pressed", node.dataset.name === filter);
    const total = found.length.toLocaleString("en");
    where.textContent = found.length
      ? `rows ${start + 1}–${start + shown.length} of ${total}` : "no rows";
    which.textContent = found.length ? `${at + 1} of ${total}` : "";
    if (focus) buttons[at - start]?.focus();
  }
  list.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: PAGE, PageUp: -PAGE }[event.key];
    if (step) { event.preventDefault(); open(at + step, true); }
  };
  place.replaceChildren(
    make("div", "wb-bar", "", ...filters, search), list,
    make("div", "wb-bar", "", button("‹ page", () => open(at - at % PAGE - PAGE)), where,
      button("page ›", () => open(at - at % PAGE + PAGE)),
      button("‹ row", () => open(at - 1)), which, button("row ›", () => open(at + 1))),
    details, make("p", "note", rows.length < about.rows
      ? `the first ${rows.length} of ${about.rows} rows: more do not fit into this page` : ""));
  find();
})();
