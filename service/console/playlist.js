// Tracks to continue from, and what comes next: each with its score and the seed that brought it.
import { ask } from "./api.js";
import { at, button, make, nameOf, percent, trackLines, whileOff } from "./dom.js";

const seeds = new Map(); // track id -> track, in the order they were chosen
let asked = null; // the request that is shown
let cursor = null;
let shown = 0;

/** Set up the playlist; `actions(track)` makes the buttons of a track. */
export function playlist(actions) {
  const form = at("continue");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    whileOff(form.querySelector("button"), async () => {
      asked = request(form);
      shown = 0;
      at("continuation").replaceChildren();
      await show(actions);
    });
  });
  at("more").addEventListener("click", (event) => whileOff(event.target, () => show(actions)));
}

/** Continue from this track as well. */
export function addSeed(track) {
  seeds.set(track.track_id, track);
  chips();
}

/** No longer continue from it. */
export function dropSeed(trackId) {
  seeds.delete(trackId);
  chips();
}

function chips() {
  at("seeds").replaceChildren(
    ...[...seeds.values()].map((track) => {
      const remove = button("×", `Without ${nameOf(track)}`, () => dropSeed(track.track_id));
      remove.ariaLabel = remove.title;
      return make("li", {}, nameOf(track), remove);
    }),
  );
  at("continue").querySelector("button").disabled = seeds.size === 0;
}

function request(form) {
  const given = form.elements;
  return {
    seeds: [...seeds.keys()],
    k: Number(given.k.value) || 10,
    diversity: Number(given.diversity.value),
    explain: true,
    filters: { only_cold: given.only_cold.checked },
    ...(given.max_per_artist.value ? { max_per_artist: Number(given.max_per_artist.value) } : {}),
  };
}

async function show(actions) {
  const answer = await ask("/continue-playlist", { method: "POST", json: shown ? { ...asked, cursor } : asked });
  cursor = answer.cursor;
  shown += answer.tracks.length;
  const names = new Map([...seeds.values()].map((track) => [track.track_id, nameOf(track)]));
  at("continuation").append(
    ...answer.tracks.map((track) =>
      make(
        "li",
        {},
        trackLines(track, because(track.because, names)),
        make("span", { className: "soft", title: "Mean similarity to the seeds" }, track.score.toFixed(3)),
        make("div", { className: "buttons" }, ...actions(track)),
      ),
    ),
  );
  if (!shown) at("continuation").append(make("li", { className: "soft" }, "No track passes."));
  at("more").hidden = cursor === null;
}

function because(reason, names) {
  if (!reason) return null;
  const whole = Math.abs(reason.audio) + Math.abs(reason.text) + Math.abs(reason.cross) || 1;
  const parts = [["sound", reason.audio], ["words", reason.text]].map(([name, part]) => `${name} ${percent(part / whole)}`);
  return make("div", { className: "soft" }, `because of ${names.get(reason.seed) ?? reason.seed}: ${parts.join(", ")}`);
}
