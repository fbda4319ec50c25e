
// What is said and what was chosen, kept in this browser: a reload goes on where the page was.
const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
const CONVERSATION = "athena.conversation", SETTINGS = "athena.settings", KEY = "athena.key";

function stored(store, name, otherwise) {
  try {
    const found = JSON.parse(store.getItem(name));
    return found === null || typeof found !== typeof otherwise || Array.isArray(found) !== Array.isArray(otherwise) ? otherwise : found;
  } catch {
    return otherwise; // not ours, or a browser that keeps nothing
  }
}

function keep(store, name, value) {
  try {
    store.setItem(name, JSON.stringify(value));
  } catch {
    // full, or a browser that keeps nothing: the page works on without
  }
}

const isMessage = (one) => one && (one.role === "user" || one.role === "assistant") && typeof one.content === "string";
const conversation = stored(localStorage, CONVERSATION, []).filter(isMessage);
const settings = stored(localStorage, SETTINGS, {});
let key = stored(sessionStorage, KEY, "");

const keepConversation = () => keep(localStorage, CONVERSATION, conversation);
const keepSettings = () => keep(localStorage, SETTINGS, settings);

function useKey(value) {
  key = value;
  keep(sessionStorage, KEY, key);
}

// The request for an answer to the conversation as it stands. recommended: sampling of the model where none was chosen.
function requestBody(model, recommended) {
  const messages = conversation.map(({ role, content }) => ({ role, content }));
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of SAMPLING) {
    const value = typeof settings[name] === "number" ? settings[name] : recommended[name];
    if (typeof value === "number") body[name] = value;
  }
  return body;
}
