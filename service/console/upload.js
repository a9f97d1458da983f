// New tracks: files are sent two at a time; each says how far it is, what was heard, and what to do with it.
import { upload } from "./api.js";
import { at, button, make, percent, trackLines } from "./dom.js";

const AT_ONCE = 2;
const TRIES = 5;
const waiting = [];
let sending = 0;

/** Let files be dropped or chosen; `actions(track)` makes the buttons of a track that is in. */
export function uploads(actions) {
  const drop = at("drop");
  at("files").addEventListener("change", (event) => {
    take(event.target.files, actions);
    event.target.value = "";
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => take(event.dataTransfer.files, actions));
}

function take(files, actions) {
  for (const file of files) {
    const line = make("li");
    at("uploads").prepend(line);
    waiting.push({ file, line, metadata: guess(file.name), actions });
  }
  next();
}

/** Return artist and title of "Artist - Title.mp3"; a number of the track in front is left out. */
export function guess(name) {
  const bare = name.replace(/\.[^.]{1,5}$/, "").replace(/^\d{1,3}[ ._-]+(?=\D)/, "").replaceAll("_", " ").trim();
  const [artist, ...title] = bare.split(" - ");
  return title.length ? { artist: artist.trim(), title: title.join(" - ").trim() } : { title: bare };
}

async function next() {
  if (sending >= AT_ONCE || !waiting.length) return;
  const one = waiting.shift();
  sending += 1;
  next();
  try {
    await send(one);
  } finally {
    sending -= 1;
    next();
  }
}

async function send({ file, line, metadata, actions }) {
  const bar = make("progress", { value: 0, max: 1 });
  const state = make("span", { className: "soft" }, "sending");
  line.replaceChildren(trackLines({ ...metadata, track_id: file.name }), state, make("div", { className: "bar" }, bar));
  for (let number = 1; ; number += 1) {
    try {
      const answer = await upload(file, metadata, (part) => {
        bar.value = part;
        if (part === 1) state.textContent = "listening";
      });
      line.replaceChildren(trackLines(answer.track, heard(answer)), make("div", { className: "buttons" }, ...actions(answer.track, line)));
      return;
    } catch (problem) {
      if (![429, 503].includes(problem.status) || number === TRIES) {
        const again = button("Try again", "Send it again", () => {
          waiting.push({ file, line, metadata, actions });
          next();
        });
        line.replaceChildren(trackLines({ ...metadata, track_id: file.name }, make("div", { className: "bad" }, problem.message)), again);
        return;
      }
      state.textContent = "waiting for a place";
      await new Promise((later) => setTimeout(later, 1000 * Math.min(problem.retryAfter || 1, 30)));
    }
  }
}

function heard({ outcome, quality, freshness_ms: freshness }) {
  if (!quality) return make("div", { className: "soft" }, "It was here already.");
  const odd = [];
  if (quality.silence > 0.2) odd.push(`${percent(quality.silence)} silence`);
  if (quality.near_duplicate) odd.push(`sounds like ${quality.near_duplicate.track_id}`);
  return make(
    "div",
    {},
    make("div", { className: "good" }, `${outcome === "replaced" ? "Replaced" : "In"}: recommended ${Math.round(freshness)} ms after the upload began.`),
    make("div", { className: "soft" }, `${Math.round(quality.duration_s)} s, ${quality.codec}, ${quality.sample_rate / 1000} kHz`),
    odd.length ? make("div", { className: "bad" }, odd.join("; ")) : null,
  );
}
