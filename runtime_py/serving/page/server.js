
// The calls to the server that the page came from.
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // something else than our server answered: its status has to do
  }
  throw new Refused(response.status, message);
}

// By name: the sampling that the server recommends.
async function models() {
  const answer = await (await ask("v1/models")).json();
  return new Map(answer.data.filter((one) => one.recommended_sampling).map((one) => [one.id, one.recommended_sampling]));
}

// The events of an answer as they come; the server ends with [DONE].
async function* answerEvents(body, signal) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
  const reader = (await ask("v1/chat/completions", options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server's answer broke off");
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      signal.throwIfAborted(); // what has come already is not shown either
      if (!event.startsWith("data: ")) continue;
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}
