// The service: requests with the API key, and its problem documents (RFC 9457) as errors.

const KEPT = "debut-key"; // in sessionStorage: gone with the tab
let onKeyNeeded = () => {};

/** An answer that is not a success: `message` says what was wrong and what to do. */
export class Problem extends Error {
  constructor(document, status, retryAfter) {
    super([document.detail, ...(document.errors ?? []).map((error) => Object.values(error).join(": "))].join(" "));
    this.code = document.code;
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Call `work` whenever the service asks for a key that it has not got. */
export function whenKeyNeeded(work) {
  onKeyNeeded = work;
}

/** Send this key from now on, as long as the tab is open. */
export function useKey(key) {
  sessionStorage.setItem(KEPT, key);
}

const authorization = () => {
  const key = sessionStorage.getItem(KEPT);
  return key ? { Authorization: `Bearer ${key}` } : {};
};

/** Return the answer to a request as JSON, or as text where it is something else. Throws Problem. */
export async function ask(path, { method = "GET", json, headers = {} } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { Accept: "application/json", ...authorization(), ...(json ? { "Content-Type": "application/json" } : {}), ...headers },
      body: json && JSON.stringify(json),
    });
  } catch {
    throw new Problem({ detail: "The service cannot be reached.", code: "unreachable" }, 0, null);
  }
  return read(answer.status, answer.headers.get("Content-Type") ?? "", await answer.text(), answer.headers.get("Retry-After"));
}

/** Upload a file, its metadata in the query; `progress` hears of the part that is sent, 0 to 1. Throws Problem. */
export function upload(file, metadata, progress) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest(); // fetch does not say how much is sent
    const query = new URLSearchParams(Object.entries(metadata).filter(([, value]) => value));
    request.open("POST", `/ingest-track?${query}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    Object.entries(authorization()).forEach((header) => request.setRequestHeader(...header));
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onerror = () => failed(new Problem({ detail: "The upload broke off: the service cannot be reached.", code: "unreachable" }, 0, null));
    request.onload = () => {
      try {
        done(read(request.status, request.getResponseHeader("Content-Type") ?? "", request.responseText, request.getResponseHeader("Retry-After")));
      } catch (problem) {
        failed(problem);
      }
    };
    request.send(file);
  });
}

function read(status, type, text, retryAfter) {
  if (status >= 200 && status < 300) return type.includes("json") ? JSON.parse(text) : text;
  let problem = { detail: `The service, or what stands before it, answered ${status}.`, code: "unknown" };
  if (type.includes("problem+json")) problem = JSON.parse(text);
  if (status === 401) onKeyNeeded();
  throw new Problem(problem, status, retryAfter === null ? null : Number(retryAfter));
}
