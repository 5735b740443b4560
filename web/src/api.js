// Requests to the server. Every failure is an Error with a sentence; `lost` says there is no server.

const token = document.querySelector("meta[name=spad-token]").content;

async function ask(name, body, signal) {
  let response;
  try {
    response = await fetch(`api/${name}`, {
      method: body === undefined ? "GET" : "POST",
      headers: { "x-spad-token": token, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw lost(error);
  }
  if (!response.ok) throw new Error(await sentence(response));
  return response;
}

function lost(error) {
  if (error.name === "AbortError") return error;
  return Object.assign(new Error("The server does not answer."), { lost: true });
}

async function sentence(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).message ?? text;
  } catch {
    return text;
  }
}

export const getJson = async (name, body) => (await ask(name, body)).json();
export const getBlob = async (name, body) => (await ask(name, body)).blob();

// Messages of a long request, one by one. Aborting the signal stops the work on the server.
export async function* stream(name, body, signal) {
  const response = await ask(name, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw lost(error);
    }
    if (part.done) break;
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter(Boolean)) yield JSON.parse(line);
  }
}
