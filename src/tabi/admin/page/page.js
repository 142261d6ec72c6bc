"use strict";
// The page of tabi's admin API. It keeps the token for this tab, sends it as a header, and shows names as text alone.

const ROWS = 200; // sessions that are shown at a time
const EVERY = 3000; // milliseconds between two looks
const view = document.getElementById("view");
const state = document.getElementById("state");
const notice = document.getElementById("notice");

let token = sessionStorage.getItem("token") || "";
let timer = 0;
let shown = ""; // the view
let turn = 0; // of looks: an answer to an older one is not shown
const before = new Map(); // octets of sessions at the last look, for rates
const wish = { search: "", sort: "octets" };

const SVG = new Set(["svg", "rect", "polyline"]);

// --- small tools ---

function make(name, attributes = {}, ...children) {
  const one = SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) one.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) one.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null) one.append(child);
  return one;
}

function octets(number) {
  let unit = 0;
  while (number >= 999.5 && unit < 4) { number /= 1000; unit += 1; }
  const digits = unit && number < 10 ? 1 : 0;
  return `${number.toFixed(digits)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

function seconds(number) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (number >= 2 * size) return `${Math.round(number / size)} ${unit}`;
  }
  return `${number < 10 ? number.toFixed(1) : Math.round(number)} s`;
}

function say(text) {
  notice.textContent = text;
  if (text) setTimeout(() => { if (notice.textContent === text) notice.textContent = ""; }, 8000);
}

function table(caption, heads, rows) {
  if (!rows.length) return make("p", { class: "soft" }, `No ${caption}.`);
  const head = heads.map(([text, kind]) => make("th", { scope: "col", class: kind || null }, text));
  const body = rows.map((cells) => make("tr", {}, cells.map((cell, place) => {
    const kind = heads[place][1] || null;
    return make("td", { class: kind }, cell === null || cell === undefined ? "–" : cell);
  })));
  return make("div", { class: "wide" },
    make("table", { "aria-label": caption }, make("thead", {}, make("tr", {}, head)), make("tbody", {}, body)));
}

// --- the API ---

class Refused extends Error {}

async function call(method, path, body) {
  const options = { method, headers: { Authorization: `Bearer ${token}` }, cache: "no-store" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (answer.status === 401) throw new Refused(found.error);
  if (!answer.ok) throw new Error(found.path ? `${found.path}: ${found.error}` : found.error);
  return found;
}

function ask(method, path, body) {
  return call(method, path, body).then((found) => { look(true); return found; }, (error) => {
    if (error instanceof Refused) login(error.message); else say(error.message);
    return null;
  });
}

function login(error) {
  const dialog = document.getElementById("login");
  document.getElementById("login-error").textContent = token ? error : "";
  if (!dialog.open) dialog.showModal();
}

document.getElementById("login").addEventListener("close", () => {
  token = document.getElementById("token").value;
  sessionStorage.setItem("token", token);
  look();
});

// --- views: each gives what is shown, out of what the API has answered ---

function rate(row, now) {
  const last = before.get(row.id);
  const total = row.up + row.down;
  before.set(row.id, [total, now]);
  return last && now > last[1] ? Math.max(0, total - last[0]) / ((now - last[1]) / 1000) : null;
}

const views = {
  async sessions() {
    const query = new URLSearchParams({ limit: ROWS, sort: wish.sort });
    if (wish.search) query.set("search", wish.search);
    const found = await call("GET", `sessions?${query}`);
    const now = performance.now();
    const rows = found.sessions.map((row) => {
      const place = row.host === null ? row.command : `${row.host.includes(":") ? `[${row.host}]` : row.host}:${row.port}`;
      const end = make("button", { class: "danger", "aria-label": `End ${row.id}`,
        onclick: () => ask("DELETE", `sessions/${encodeURIComponent(row.id)}`).then((done) => done && say(`${done.ended} ended`)) }, "End");
      const speed = rate(row, now);
      return [row.user, row.client, row.protocol, place, row.member ? `${row.via}/${row.member}` : row.via,
        speed === null ? null : `${octets(speed)}/s`, octets(row.up), octets(row.down), seconds(row.seconds), end];
    });
    if (before.size > 20 * ROWS) before.clear();
    const more = found.matching - rows.length;
    return [
      table("sessions", [["User"], ["Client", "less"], ["Protocol", "less"], ["Destination", "text"], ["Egress", "less"],
        ["Rate", "number"], ["Up", "number"], ["Down", "number"], ["Time", "number"], [""]], rows),
      more > 0 ? make("p", { class: "soft" }, `${more.toLocaleString()} more match.`) : null,
    ];
  },

  async users() {
    const found = await call("GET", "users");
    const accounts = new Map(found.accounts.map((one) => [one.name, one]));
    const bar = (used, most, text) => {
      const part = most ? Math.min(1, used / most) : 0;
      return make("span", {}, make("svg", { class: "usage", viewBox: "0 0 100 10", preserveAspectRatio: "none",
        role: "img", "aria-label": `${Math.round(100 * part)} %` }, make("rect", { width: 100 * part, height: 10 })), ` ${text}`);
    };
    const cells = (name, row) => {
      const account = accounts.get(name);
      const quota = account && account.quota_octets
        ? bar(account.used, account.quota_octets, `${octets(account.used)} of ${account.quota}`) : null;
      const connections = account && account.connections
        ? bar(account.sessions, account.connections, `${account.sessions} of ${account.connections}`) : null;
      return [row.shown, row.sessions, connections, quota, octets(row.up), octets(row.down), row.action];
    };
    const rows = found.users.map((user) => cells(`user ${user.name}`, { ...user, shown: user.name,
      action: make("button", { class: "danger", onclick: () => {
        if (confirm(`End all sessions of ${user.name}?`)) {
          ask("DELETE", `sessions?user=${encodeURIComponent(user.name)}`).then((done) => done && say(`${done.ended} ended`));
        }
      } }, "End all") }));
    const others = found.accounts.filter((one) => !one.name.startsWith("user "))
      .map((one) => cells(one.name, { shown: one.name, sessions: one.sessions, up: 0, down: 0, action: null }).slice(0, 4));
    return [
      table("users", [["User"], ["Sessions", "number"], ["Connections"], ["Quota"], ["Up now", "number"], ["Down now", "number"], [""]], rows),
      make("h2", {}, "Groups, networks and the server"),
      table("limits", [["Account"], ["Sessions", "number"], ["Connections"], ["Quota"]], others),
    ];
  },

  async egress() {
    const [found, past] = await Promise.all([call("GET", "egress"), call("GET", "egress/history")]);
    const looks = new Map(past.members.map((one) => [`${one.pool}\n${one.member}`, one.looks]));
    const rows = found.members.map((one) => {
      const last = [...(looks.get(`${one.pool}\n${one.member}`) || "")].slice(-30);
      const history = make("svg", { class: "history", viewBox: "0 0 30 10", role: "img",
        "aria-label": `took requests in ${last.filter((up) => up === "1").length} of the last ${last.length} looks` },
      last.map((up, place) => make("rect", { x: place + 30 - last.length, width: .8, height: 10, class: up === "1" ? "up" : "out" })));
      const how = one.drained ? make("span", { class: "soft" }, "drained") : one.up
        ? make("span", { class: "good" }, "up") : make("span", { class: "bad" }, `out, tried again in ${seconds(one.trial_in || 0)}`);
      const action = one.drained ? "undrain" : "drain";
      const path = `egress/${encodeURIComponent(one.pool)}/${encodeURIComponent(one.member)}/${action}`;
      return [one.pool, one.member, how, history, one.sessions, one.reason,
        make("button", { onclick: () => ask("POST", path) }, one.drained ? "Bring back" : "Drain")];
    });
    return [table("members of pools", [["Pool"], ["Member"], ["State"], ["Last five minutes"], ["Sessions", "number"], ["Last failure", "text"], [""]], rows)];
  },

  async refusals() {
    const found = await call("GET", "refusals");
    const rows = found.refusals.map((one) => [new Date(1000 * one.time).toLocaleTimeString(), one.user, one.client,
      one.host === null ? one.command : `${one.host}:${one.port}`, one.rule, one.error]);
    return [table("refusals", [["Time"], ["User"], ["Client", "less"], ["Destination", "text"], ["Rule"], ["Why", "text"]], rows)];
  },

  async faults() {
    const found = await call("GET", "faults");
    const rows = found.faults.map((one) => [one.name, one.what, one.matchers || "all", one.sessions, one.chosen,
      one.seconds_left === null ? null : seconds(one.seconds_left),
      one.live ? make("button", { class: "danger", onclick: () => ask("DELETE", `faults/${encodeURIComponent(one.name)}`) }, "Remove")
        : make("span", { class: "soft" }, "in the file")]);
    return [table("faults", [["Name"], ["What", "text"], ["Which sessions", "text"], ["Now", "number"], ["So far", "number"], ["Left", "number"], [""]], rows)];
  },

  async graphs() {
    const found = await call("GET", "history");
    const graph = (name, text, show) => {
      const values = found.rows.map((row) => row[name]);
      const most = Math.max(...values, 1e-9);
      const points = values.map((value, place) => `${place + 360 - values.length},${100 - 96 * value / most}`).join(" ");
      const last = values.length ? show(values[values.length - 1]) : "no figures yet";
      return make("figure", {}, make("figcaption", {}, `${text}: ${last}, at most ${values.length ? show(Math.max(...values)) : "–"}`),
        make("svg", { class: "graph", viewBox: "0 0 360 100", preserveAspectRatio: "none", role: "img", "aria-label": `${text}, the last hour` },
          make("polyline", { points })));
    };
    const each = (value) => `${value.toFixed(1)}/s`;
    const octetsEach = (value) => `${octets(value)}/s`;
    return [make("div", { class: "graphs" },
      graph("open", "Sessions", (value) => value.toFixed(0)), graph("sessions_rate", "New sessions", each),
      graph("down_rate", "To clients", octetsEach), graph("up_rate", "From clients", octetsEach),
      graph("refused_rate", "Refused", each), graph("cpu_rate", "CPU of the workers", (value) => `${(100 * value).toFixed(0)} % of a core`),
      graph("memory", "Memory of the workers", octets), graph("lag", "Lag of the event loop", (value) => `${(1000 * value).toFixed(1)} ms`))];
  },
};

const tools = {
  sessions() {
    const search = make("input", { type: "search", value: wish.search, placeholder: "user, address, host",
      oninput: (event) => { wish.search = event.target.value.trim(); soon(300); } });
    const sort = make("select", { onchange: (event) => { wish.sort = event.target.value; look(); } },
      [["octets", "most octets"], ["down", "most down"], ["up", "most up"], ["seconds", "oldest"]].map(([value, text]) =>
        make("option", { value, selected: value === wish.sort }, text)));
    return make("div", { class: "tools" }, make("label", {}, "Search", search), make("label", {}, "Order", sort));
  },
  faults() {
    const form = make("form", { class: "tools", onsubmit: (event) => {
      event.preventDefault();
      const given = {};
      for (const [key, value] of new FormData(form)) if (value) given[key] = key === "hosts" ? value.split(/[\s,]+/) : value;
      ask("POST", "faults", given).then((found) => { if (found) { say(`${found.name} is set`); form.reset(); } });
    } }, [["profile", "Profile", "3g"], ["hosts", "Hosts", "*.example.com"], ["latency", "Latency", "200ms"],
      ["jitter", "Jitter", "50ms"], ["bandwidth", "Bandwidth", "1 MB/s"], ["loss", "Loss", "1%"], ["for", "For", "5min"]].map(
      ([name, text, placeholder]) => make("label", {}, text, make("input", { name, placeholder, size: 12 }))),
    make("button", {}, "Add"));
    return form;
  },
};

// --- looking ---

// Rows change their places: under the pointer of who is about to end one they stay, until something was done.
const steady = matchMedia("(hover: hover)");

async function look(done) {
  clearTimeout(timer);
  const name = location.hash.slice(1);
  const wanted = views[name] ? name : "sessions";
  const mine = ++turn;
  if (wanted !== shown) {
    shown = wanted;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${wanted}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
    view.replaceChildren(...[make("h2", { id: "title" }, document.querySelector("nav a[aria-current]").textContent),
      tools[wanted] ? tools[wanted]() : null, make("div", { id: "found" })].filter(Boolean));
  }
  try {
    const [status, found] = await Promise.all([call("GET", "status"), views[wanted]()]);
    if (mine !== turn) return;
    if (done !== true && steady.matches && document.querySelector("#found button:hover")) { soon(EVERY / 3); return; }
    const focused = document.activeElement && document.activeElement.getAttribute("aria-label");
    document.getElementById("found").replaceChildren(...found.filter(Boolean));
    if (focused && document.activeElement === document.body) {
      const again = document.querySelector(`#found [aria-label="${CSS.escape(focused)}"]`);
      if (again) again.focus();
    }
    state.textContent = `${status.state}, ${status.workers.length} ${status.workers.length === 1 ? "worker" : "workers"}, version ${status.version}`;
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof Refused) { login(error.message); return; }
    state.textContent = `no answer: ${error.message}`;
  }
  soon(EVERY);
}

function soon(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? soon(EVERY) : look()), milliseconds);
}

addEventListener("hashchange", () => { look(); view.focus(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
