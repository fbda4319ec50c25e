
// The conversation as it is seen. `acts` are the page's: edit(i, text), again(), busy().
const log = document.getElementById("log");

function button(label, act) {
  const made = element("button", "", label);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

// Tokens that came all at once have no speed.
function figures(message) {
  const { tokens, seconds, first, prompt, reused, ended } = message.figures || {};
  const said = [];
  if (tokens) said.push(`${tokens} tokens`);
  if (tokens > 1 && seconds > 0.05) said.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
  if (first) said.push(`first after ${first.toFixed(2)} s`);
  if (prompt) said.push(`prompt of ${prompt}${reused ? `, ${reused} reused` : ""}`);
  if (ended) said.push(ended);
  return said.join(" · ");
}

function bodyOf(message) {
  if (message.role === "user") return element("div", "body", message.content);
  const body = element("div", "body");
  if (message.thought) {
    const thought = element("details", "thought", element("summary", "", "Thoughts"), ...markdown(message.thought));
    thought.open = !message.content;
    body.append(thought);
  }
  body.append(...markdown(message.content));
  return body;
}

function copied(made, text) {
  navigator.clipboard?.writeText(text).then(() => {
    made.textContent = "Copied";
    setTimeout(() => (made.textContent = "Copy"), 1500);
  });
}

function article(message, i, acts) {
  const tools = element("div", "tools");
  const made = element("article", message.role, bodyOf(message), tools);
  if (message.role === "user") {
    tools.append(button("Edit", () => editor(made, message, i, acts)));
  } else {
    tools.append(element("span", "", figures(message)));
    if (navigator.clipboard) { // not where the page came over plain HTTP from another machine
      const copy = button("Copy", () => copied(copy, message.content));
      tools.append(copy);
    }
    if (i === conversation.length - 1) tools.append(button("Regenerate", acts.again));
  }
  return made;
}

function editor(made, message, i, acts) {
  if (acts.busy()) return;
  const field = element("textarea", "editor");
  field.value = message.content;
  field.setAttribute("aria-label", "Message, changed");
  const send = () => field.value.trim() && acts.edit(i, field.value);
  field.addEventListener("keydown", (event) => {
    if (isSend(event)) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      show(acts);
    }
  });
  made.replaceChildren(field, element("div", "tools", button("Send again", send), button("Cancel", () => show(acts))));
  field.focus();
}

// Enter alone, and not the one that ends a word in an input method.
const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 60;
const toEnd = () => (log.scrollTop = log.scrollHeight);

function show(acts) {
  const column = element("div", "column", ...conversation.map((message, i) => article(message, i, acts)));
  if (!conversation.length) column.append(element("p", "empty", "Ask something."));
  log.replaceChildren(column);
  toEnd();
}

// The answer that is being written: only its body changes.
function showGrowing(message, waiting) {
  const last = log.querySelector("article:last-of-type .body"), follow = atEnd();
  const body = bodyOf(message);
  body.classList.toggle("waiting", waiting);
  last.replaceWith(body);
  if (follow) toEnd();
}
