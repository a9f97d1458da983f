// Whom to show a track to: its tastes, the listeners, and both as a file.
import { ask } from "./api.js";
import { at, button, make, nameOf, percent } from "./dom.js";

const SHOWN = 25;

/** Show the audience of a track. */
export async function showAudience(track) {
  const path = `/audience/${encodeURIComponent(track.track_id)}`;
  const answer = await ask(`${path}?limit=${SHOWN}`);
  const names = await titles(answer.clusters.flatMap((cluster) => cluster.tracks.slice(0, 3)));
  at("audience-hint").hidden = true;
  at("audience").replaceChildren(
    make("h3", {}, `${nameOf(track)} `, make("span", { className: "soft" }, `${answer.clusters.length} tastes`)),
    ...answer.clusters.map((cluster, place) => taste(cluster, place, names)),
    button("Download as CSV", "The 1000 best, a line each", async () => save(await ask(`${path}?limit=1000`, { headers: { Accept: "text/csv" } }), track)),
    make("div", { className: "scroll" }, listeners(answer.listeners)),
  );
  at("audience").scrollIntoView({ block: "nearest" });
}

function taste(cluster, place, names) {
  const near = cluster.tracks.slice(0, 3).map((id) => names.get(id) ?? id);
  return make(
    "div",
    { className: "taste" },
    make("div", {}, `Taste ${place + 1}: ${percent(cluster.share)} of the audience, like those who hear `, make("em", {}, near.join(", ") || "nothing here")),
    make("meter", { value: cluster.share, max: 1, ariaLabel: `Share of taste ${place + 1}` }),
  );
}

function listeners(found) {
  const head = make("tr", {}, make("th", {}, "Listener"), make("th", {}, "Score"), make("th", {}, "Taste"));
  const rows = found.map((one) =>
    make("tr", {}, make("td", {}, one.listener_id), make("td", {}, one.score.toFixed(3)), make("td", {}, `${one.cluster + 1}`)),
  );
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

async function titles(ids) {
  const known = await Promise.all(
    [...new Set(ids)].map(async (id) => [id, nameOf(await ask(`/tracks/${encodeURIComponent(id)}`).catch(() => ({ track_id: id })))]),
  );
  return new Map(known);
}

function save(text, track) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: address, download: `audience ${nameOf(track)}.csv` }).click();
  URL.revokeObjectURL(address);
}
