
// The page: fields, keys, and the one answer that may be under way.
const find = (name) => document.getElementById(name);
const input = find("input"), model = find("model"), error = find("error"), status = find("status");
let running = null; // AbortController of the answer that is being written
let recommended = new Map();

const acts = {
  busy: () => running !== null,
  again: () => {
    if (running) return;
    if (conversation.at(-1)?.role === "assistant") conversation.pop();
    answer();
  },
  edit: (i, text) => {
    if (running) return;
    conversation.splice(i);
    say(text);
  },
};

function tell(message) {
  error.textContent = message;
  error.hidden = !message;
}

function busy(yes) {
  find("send").hidden = yes;
  find("stop").hidden = !yes;
  find("new").disabled = yes;
}

function say(text) {
  conversation.push({ role: "user", content: text });
  keepConversation();
  answer();
}

async function answer() {
  running = new AbortController();
  const request = requestBody(model.value, recommended.get(model.value)), message = { role: "assistant", content: "", thought: "", figures: {} };
  const began = performance.now();
  tell("");
  busy(true);
  conversation.push(message);
  show(acts);
  showGrowing(message, true);
  status.textContent = "Reading the prompt …";
  try {
    await write(message, request, began);
  } catch (problem) {
    const stopped = running.signal.aborted;
    if (stopped) message.figures.ended = "stopped";
    else tell(problem.message || String(problem));
    if (!message.content && !message.thought) conversation.pop();
    else if (!stopped) message.figures.ended = "broke off";
    if (problem.status === 401) openSettings(true, "key");
  }
  running = null;
  status.textContent = "";
  busy(false);
  keepConversation();
  show(acts);
}

async function write(message, request, began) {
  let first = null, last = null, drawn = false;
  const draw = () => {
    drawn = false;
    if (running) showGrowing(message, true);
  };
  for await (const event of answerEvents(request, running.signal)) {
    const choice = event.choices[0], { figures } = message;
    if (choice?.delta.content || choice?.delta.reasoning_content) {
      last = performance.now();
      if (first === null) status.textContent = "Writing …";
      first ??= last;
      message.content += choice.delta.content || "";
      message.thought += choice.delta.reasoning_content || "";
      if (!drawn) requestAnimationFrame(draw);
      drawn = true;
    }
    if (choice?.finish_reason === "length") figures.ended = "cut off at the most tokens";
    if (event.usage) {
      figures.tokens = event.usage.completion_tokens;
      figures.prompt = event.usage.prompt_tokens;
      figures.reused = event.usage.prompt_tokens_details?.cached_tokens || 0;
    }
  }
  if (first !== null) Object.assign(message.figures, { first: (first - began) / 1000, seconds: (last - first) / 1000 });
}

function openSettings(yes, field = "system") {
  find("settings").hidden = !yes;
  find("open-settings").setAttribute("aria-expanded", String(yes));
  if (yes) find(field).focus();
  else input.focus();
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function send() {
  const text = input.value;
  if (running || !text.trim() || !model.value) return;
  input.value = "";
  grow();
  say(text);
}

async function loadModels() {
  try {
    recommended = await models();
    model.replaceChildren(...[...recommended.keys()].map((name) => new Option(name, name)));
    if (recommended.has(settings.model)) model.value = settings.model;
    useModel();
    tell("");
  } catch (problem) {
    tell(problem.message);
    if (problem.status === 401) openSettings(true, "key");
  }
}

function useModel() {
  document.title = model.value;
  for (const [name, value] of Object.entries(recommended.get(model.value))) {
    if (SAMPLING.includes(name)) find(name).placeholder = name === "top_k" && value === 0 ? "all" : value;
  }
}

function setTheme() {
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
}

function readField(field) {
  const number = SAMPLING.includes(field.id), value = number ? field.valueAsNumber : field.value;
  if (number && (Number.isNaN(value) || !field.validity.valid)) delete settings[field.id];
  else settings[field.id] = value;
  keepSettings();
}

for (const name of ["system", "theme", ...SAMPLING]) {
  const field = find(name);
  if (settings[name] !== undefined) field.value = settings[name];
  field.addEventListener("input", () => {
    readField(field);
    setTheme();
  });
}
find("key").addEventListener("change", (event) => {
  useKey(event.target.value.trim());
  loadModels();
});
model.addEventListener("change", () => {
  settings.model = model.value;
  keepSettings();
  useModel();
});
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
find("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  openSettings(false);
});
find("stop").addEventListener("click", () => running?.abort());
find("new").addEventListener("click", () => {
  conversation.splice(0);
  keepConversation();
  tell("");
  show(acts);
  input.focus();
});
find("open-settings").addEventListener("click", () => openSettings(find("settings").hidden));
find("close-settings").addEventListener("click", () => openSettings(false));
input.addEventListener("input", grow);
input.addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !input.value && !running) {
    const edits = log.querySelectorAll("article.user .tools button");
    if (edits.length) event.preventDefault();
    edits[edits.length - 1]?.click();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (!find("settings").hidden) openSettings(false);
  else running?.abort();
});

setTheme();
show(acts);
loadModels();
