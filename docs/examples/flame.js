/* A flame graph of folded stacks, for a page that has the elements #graph, #at, #whole, #search, #matches and
 * #functions. */

const $ = id => document.getElementById(id);
const ROW = 23, NARROWEST = 2, FUNCTIONS = 30;

function human(n) {
    const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = 0;
    for (; n >= 1023.5 && unit < units.length - 1; unit++)
        n /= 1024;
    return unit === 0 ? `${n} bytes` : `${n.toFixed(n < 9.995 ? 2 : n < 99.95 ? 1 : 0)} ${units[unit]}`;
}

const percent = (part, whole) => whole > 0 ? `${(100 * part / whole).toFixed(1)} %` : "0 %";

/* ---- the tree of frames: name, bytes with and without callees, parent, children by name */

function frame(name, parent) {
    return { name, parent, depth: parent ? parent.depth + 1 : 0, bytes: 0, own: 0, children: new Map() };
}

function parse(text) {
    const root = frame("all", null);
    for (const line of text.split("\n")) {
        const space = line.lastIndexOf(" "), bytes = Number(line.slice(space + 1));
        if (space < 0 || !Number.isFinite(bytes))
            continue;
        let at = root;
        root.bytes += bytes;
        for (const name of line.slice(0, space).split(";")) {
            if (!at.children.has(name))
                at.children.set(name, frame(name, at));
            at = at.children.get(name);
            at.bytes += bytes;
        }
        at.own += bytes;
    }
    return root;
}

const byBytes = at => [...at.children.values()].sort((a, b) => b.bytes - a.bytes || (a.name < b.name ? -1 : 1));
const describe = at => `${at.name}: ${human(at.bytes)}, ${percent(at.bytes, view.root.bytes)}` +
    (at.own > 0 && at.own < at.bytes ? `, ${human(at.own)} itself` : "");

/* ---- what is shown */

const view = { root: frame("all", null), at: null, wanted: "" };
view.at = view.root;

const isFound = at => view.wanted !== "" && at.name.toLowerCase().includes(view.wanted);

/* Bytes of what is found, counted once where one frame lies on another. */
function foundBytes(at) {
    return isFound(at) ? at.bytes : [...at.children.values()].reduce((sum, child) => sum + foundBytes(child), 0);
}

function show(at, left, width, whole, rows) {
    const node = document.createElement("button"), text = describe(at);
    node.type = "button";
    node.className = `frame${at.depth % 2 ? " odd" : ""}${isFound(at) ? " found" : ""}${whole ? " passed" : ""}`;
    node.style.cssText = `left:${left}px;width:${width}px;top:${at.depth * ROW}px`;
    node.textContent = width > 24 ? at.name : "";
    node.title = text;
    node.setAttribute("aria-label", text);
    node.tabIndex = at === view.at ? 0 : -1;
    node.frame = at;
    at.node = node;
    $("graph").append(node);
    rows.deepest = Math.max(rows.deepest, at.depth);
}

function showBelow(at, left, width, rows) {
    show(at, left, width, false, rows);
    for (const child of byBytes(at)) {
        const share = width * child.bytes / at.bytes;
        if (share >= NARROWEST)
            showBelow(child, left, share, rows);
        left += share;
    }
}

function render() {
    const rows = { deepest: 0 }, width = $("graph").clientWidth;
    $("graph").replaceChildren();
    for (let at = view.at.parent; at; at = at.parent)
        show(at, 0, width, true, rows);
    showBelow(view.at, 0, width, rows);
    $("graph").style.height = `${(rows.deepest + 1) * ROW}px`;
    $("at").textContent = describe(view.at);
    $("whole").disabled = view.at === view.root;
    const found = foundBytes(view.root);
    $("matches").textContent = view.wanted === "" ? "" : found === 0 ? "Nothing found" :
        `Found: ${human(found)}, ${percent(found, view.root.bytes)}`;
}

function renderFunctions() {
    const sums = new Map();
    (function add(at, above) {
        const sum = sums.get(at.name) ?? { own: 0, bytes: 0 };
        sum.own += at.own;
        sum.bytes += above.has(at.name) ? 0 : at.bytes;
        sums.set(at.name, sum);
        const below = new Set(above).add(at.name);
        at.children.forEach(child => add(child, below));
    })(view.root, new Set());
    const rows = [...sums].filter(([, sum]) => sum.own > 0).sort((a, b) => b[1].own - a[1].own).slice(0, FUNCTIONS);
    $("functions").replaceChildren(...rows.map(([name, sum]) => {
        const row = document.createElement("tr"), head = document.createElement("th");
        head.scope = "row";
        head.textContent = name;
        row.append(head, ...[sum.own, sum.bytes].map(n => {
            const cell = document.createElement("td");
            cell.textContent = `${human(n)}, ${percent(n, view.root.bytes)}`;
            return cell;
        }));
        return row;
    }));
}

function zoom(at, focus) {
    view.at = at;
    render();
    if (focus)
        at.node.focus();
}

function showStacks(text) {
    view.root = parse(text);
    view.at = view.root;
    render();
    renderFunctions();
}

$("whole").addEventListener("click", () => zoom(view.root, true));
$("search").addEventListener("input", event => {
    view.wanted = event.target.value.trim().toLowerCase();
    render();
});
$("graph").addEventListener("click", event => event.target.frame && zoom(event.target.frame, true));
for (const type of ["pointerover", "focusin"])
    $("graph").addEventListener(type, event => event.target.frame && ($("at").textContent = describe(event.target.frame)));
$("graph").addEventListener("pointerleave", () => $("at").textContent = describe(view.at));
$("graph").addEventListener("keydown", event => {
    const at = event.target.frame, siblings = at?.parent ? byBytes(at.parent).filter(s => s.node?.isConnected) : [];
    const i = siblings.indexOf(at);
    const to = at && { ArrowUp: at.parent, ArrowDown: byBytes(at)[0], ArrowLeft: siblings[i - 1], ArrowRight: siblings[i + 1] }[event.key];
    if (event.key === "Escape")
        zoom(view.root, true);
    if (to?.node?.isConnected) {
        to.node.focus();
        event.preventDefault();
    }
});
new ResizeObserver(render).observe($("graph"));
