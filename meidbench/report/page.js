/* Sorted tables, numbers to copy, and the choice of the reference. Without this script the page is readable. */
const make = (tag, text, kind) => Object.assign(document.createElement(tag), { textContent: text, className: kind });

const valueOf = cell => {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll("small").forEach(note => note.remove());
  return copy.textContent.trim().replace("\u2212", "-");
};

const sort = head => {
  const table = head.closest("table"), column = head.cellIndex, word = head.classList.contains("word");
  const before = head.getAttribute("aria-sort");
  const up = before ? before === "descending" : word;
  table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const number = text => parseFloat(text.replace(/[\u00b1,]/g, ""));
  const rows = [...table.tBodies[0].rows].map(row => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    if (word) return (up ? 1 : -1) * a.localeCompare(b);
    const x = number(a), y = number(b);
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
    return up ? x - y : y - x;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
};

/* A cell as plain text for a spreadsheet, which must not take a name for a formula. */
const plain = text => {
  text = text.replace(/\s+/g, " ").replace(/\u2212/g, "-").replace(/^(P|Holm|\u00b1) (= )?/, "");
  if (/^[\d,]+$/.test(text)) text = text.replaceAll(",", "");
  return /^[=+\-@]/.test(text) && isNaN(text) ? "'" + text : text;
};

/* The columns of a table as lines of cells between tabs; small notes, such as intervals, get columns of their own. */
const readTable = (table, columns, classes) => {
  const heads = [...table.tHead.rows[0].cells];
  columns ??= heads.map((_, column) => column);
  let rows = [...table.tBodies[0].rows];
  if (classes) rows = classes.map(number => rows.find(row => row.cells[1].textContent === number));
  const names = columns.map(column => (heads[column].dataset.notes || "").split("|").filter(Boolean));
  const lines = [columns.flatMap((column, place) => {
    const head = valueOf(heads[column]);
    return [head, ...names[place].map(name => head + " " + name)];
  })];
  for (const row of rows) {
    lines.push(columns.flatMap((column, place) => {
      let notes = [...row.cells[column].querySelectorAll("small")].map(note => note.textContent);
      if (names[place].length > 1) notes = notes.flatMap(note => note.replace(/[[\]]/g, "").split(/, | [/] | to /));
      return [valueOf(row.cells[column]), ...names[place].map((_, number) => notes[number] || "")];
    }));
  }
  return lines.map(line => line.map(plain).join("\t") + "\n").join("");
};

const copy = async (text, button) => {
  const before = button.textContent;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { /* The page may not use the clipboard: the text is selected in a field instead. */
    const field = make("textarea", text, "copied");
    field.readOnly = true;
    button.after(field);
    field.select();
    done = document.execCommand("copy");
    if (done) field.remove();
    else field.addEventListener("blur", () => field.remove());
  }
  button.textContent = done ? "copied" : "press Ctrl+C";
  setTimeout(() => { button.textContent = before; }, 2000);
};

const addSort = head => {
  const button = make("button", "", "sort");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => sort(head));
};

const addCopy = (after, title, text) => {
  const button = make("button", title, "copy");
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", () => copy(text(), button));
  after.append(button);
};

const prepare = root => {
  root.querySelectorAll("thead th").forEach(addSort);
  root.querySelectorAll(".box").forEach(box => {
    const tools = make("p", "", "tools");
    box.after(tools);
    addCopy(tools, "copy table", () => readTable(box.querySelector("table")));
  });
  root.querySelectorAll("figure").forEach(figure => {
    const [table, ...columns] = figure.dataset.source.split(" "), rows = figure.dataset.rows;
    addCopy(figure.querySelector("figcaption"), "copy data", () =>
      readTable(document.getElementById(table), columns.map(Number), rows?.split(" ").filter(Boolean)));
  });
};

const unpack = async text => {
  const bytes = Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new DOMParser().parseFromString(await new Response(stream).text(), "text/html");
};

const refer = async (templates, select) => {
  const chosen = select.selectedIndex, page = await unpack(templates[chosen].content.textContent);
  if (select.selectedIndex !== chosen) return; /* another choice came in between */
  for (const section of page.querySelectorAll("section")) {
    prepare(section);
    document.getElementById(section.id).replaceWith(section);
  }
  const table = document.getElementById("classes-table"), heads = [...table.tHead.rows[0].cells];
  const lines = page.querySelector(".changes").textContent.split("\n");
  const others = templates.filter((_, place) => place !== chosen), first = heads.length - others.length;
  others.forEach((other, place) => {
    heads[first + place].querySelector("button").textContent = "difference, " + other.dataset.name;
    heads[first + place].removeAttribute("aria-sort");
  });
  for (const row of table.tBodies[0].rows) {
    lines[row.cells[1].textContent].split("\t").forEach((text, place) => {
      const [value, low, high] = text.split(" ").map(number => number.replace(/^-/, "\u2212"));
      row.cells[first + place].replaceChildren(value, ...low ? [make("small", `[${low}, ${high}]`, "")] : []);
    });
  }
  const charts = [...document.querySelectorAll("#frequency svg")];
  const curve = charts[chosen].querySelector(".solid").children;
  charts.forEach((chart, place) => {
    chart.querySelector(".dashed").replaceChildren(...place === chosen ? [] : [...curve].map(path => path.cloneNode()));
  });
  document.querySelectorAll(".reference-name").forEach(name => { name.textContent = templates[chosen].dataset.name; });
};

prepare(document);
const templates = [...document.querySelectorAll("template.against")];
if (templates.length && window.DecompressionStream) {
  const label = make("label", "Reference: ", "chooser"), select = document.createElement("select");
  select.append(...templates.map(template => new Option(template.dataset.name)));
  select.selectedIndex = templates.findIndex(template => "shown" in template.dataset);
  select.autocomplete = "off";
  select.addEventListener("change", () => refer(templates, select));
  label.append(select);
  document.querySelector("nav").after(label);
}
