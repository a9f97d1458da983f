// The page: what state the service is in, the search, and what can be done with a track.
import { ask, useKey, whenKeyNeeded } from "./api.js";
import { showAudience } from "./audience.js";
import { at, button, make, nameOf, say, trackLines, whileOff } from "./dom.js";
import { addSeed, dropSeed, playlist } from "./playlist.js";
import { uploads } from "./upload.js";

const EVERY_MS = 10_000;

function actions(track, line = null) {
  const buttons = [
    button("Seed", `Continue a playlist from ${nameOf(track)}`, () => addSeed(track)),
    button("Audience", `Whom to show ${nameOf(track)} to`, () => showAudience(track)),
  ];
  if (line) buttons.push(button("Take down", `Remove ${nameOf(track)} for good`, () => takeDown(track, line)));
  return buttons;
}

async function takeDown(track, line) {
  if (!confirm(`Take ${nameOf(track)} down? It is gone from all answers at once.`)) return;
  await ask(`/tracks/${encodeURIComponent(track.track_id)}`, { method: "DELETE" });
  dropSeed(track.track_id);
  line.replaceChildren(trackLines({ ...track, cold: false }), make("span", { className: "soft" }, "taken down"));
}

async function status() {
  const place = at("status");
  try {
    const state = await ask("/readyz");
    place.textContent = `${state.tracks.toLocaleString()} tracks · release ${state.release}`;
    place.className = "";
  } catch (problem) {
    place.textContent = problem.message;
    place.className = "bad";
  }
}

function search() {
  const form = at("find");
  let newest = 0;
  const look = async () => {
    const mine = ++newest;
    const query = form.elements.q.value.trim();
    const answer = query ? await ask(`/tracks?${new URLSearchParams({ q: query, limit: 20 })}`) : { tracks: [] };
    if (mine !== newest) return; // a later one is on its way
    const lines = answer.tracks.map((track) => {
      const line = make("li");
      line.append(trackLines(track), make("div", { className: "buttons" }, ...actions(track, line)));
      return line;
    });
    at("found").replaceChildren(...lines);
    if (query && !lines.length) at("found").append(make("li", { className: "soft" }, "No track begins like that."));
    say(null);
  };
  let later;
  form.addEventListener("input", () => {
    clearTimeout(later);
    later = setTimeout(() => look().catch((problem) => say(problem.message)), 150);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
}

function keys() {
  const form = at("key");
  whenKeyNeeded(() => {
    form.hidden = false;
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    whileOff(form.querySelector("button"), async () => {
      useKey(form.elements.key.value.replace(/[^!-~]/g, "")); // what was copied along with it fits no header
      form.reset();
      form.hidden = true;
    });
  });
}

keys();
uploads(actions);
playlist(actions);
search();
status();
setInterval(status, EVERY_MS);
