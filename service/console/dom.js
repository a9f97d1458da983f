// Elements: the only way text gets into the page, and so never as markup.

/** Return the element of an id. */
export const at = (id) => document.getElementById(id);

/** Return a new element: `make("li", { className: "x" }, "text", child, ...)`; null children are left out. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return a button that runs `work`, and is off while it runs. */
export function button(text, title, work) {
  const element = make("button", { type: "button", title }, text);
  element.addEventListener("click", () => whileOff(element, work));
  return element;
}

/** Run `work` with `element` off; a failure is shown in the page. */
export async function whileOff(element, work) {
  element.disabled = true;
  try {
    await work();
    say(null);
  } catch (error) {
    say(error.message);
  } finally {
    element.disabled = false;
  }
}

/** Show a message that went wrong, or none. */
export function say(text) {
  const place = at("message");
  place.hidden = text === null;
  place.textContent = text ?? "";
}

/** Return how a track is called where nothing is known but its id, too. */
export const nameOf = (track) => track.title ?? track.track_id;

/** Return the lines that show a track. */
export function trackLines(track, ...more) {
  const about = [track.artist, track.album].filter(Boolean).join(" · ");
  return make(
    "div",
    { className: "track" },
    make("strong", {}, nameOf(track)),
    track.cold ? make("span", { className: "tag", title: "Nobody has listened to it yet" }, "new") : null,
    about ? make("div", { className: "soft" }, about) : null,
    ...more,
  );
}

/** Return 0.123 as "12 %". */
export const percent = (share) => `${Math.round(share * 100)} %`;
