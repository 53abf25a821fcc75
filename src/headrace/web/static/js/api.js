// Questions to the server. A failure is an ApiError with what happened and what to do; nothing waits for ever.

export class ApiError extends Error {
  constructor(message, hint = "", code = "", status = 0) {
    super(message);
    this.hint = hint;
    this.code = code;
    this.status = status;
  }

  get text() {
    return this.hint ? `${this.message}. ${this.hint}` : this.message;
  }
}

async function ask(path, options = {}, timeoutS = 70) {
  let response;
  try {
    response = await fetch(path, { ...options, signal: AbortSignal.timeout(timeoutS * 1000) });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(late ? `no answer within ${timeoutS} s` : "the console does not answer", "is headrace running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  const problem = body?.error ?? {};
  throw new ApiError(problem.message ?? `status ${response.status}`, problem.hint, problem.code, response.status);
}

export const get = (path, parameters = {}) => {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value !== null));
  return ask(query.size ? `${path}?${query}` : path);
};

export const post = (path, body, timeoutS) => send("POST", path, body, timeoutS);

export const send = (method, path, body = {}, timeoutS = 70) =>
  ask(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }, timeoutS);
