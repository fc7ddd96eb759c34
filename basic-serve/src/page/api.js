'use strict';

const element = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// The page may be served below a path, with or without a slash at its end: addresses are relative to it.
const address = (path) => new URL(path, location.origin + location.pathname.replace(/\/?$/, '/')).href;

function headers() {
  const key = element('key').value.trim();
  return { 'Content-Type': 'application/json', ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// What an answer of the server that is no success says.
async function complaint(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function getJson(path) {
  const response = await fetch(address(path), { headers: headers() });
  if (!response.ok) throw new Error(await complaint(response));
  return response.json();
}

async function postJson(path, body, signal) {
  const response = await fetch(address(path), { method: 'POST', headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await complaint(response));
  return response.json();
}

// Calls `take` with each event of a stream, until its end.
async function postStream(path, body, signal, take) {
  const response = await fetch(address(path), { method: 'POST', headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await complaint(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error('the connection ended before the answer did');
    rest += value;
    const lines = rest.split('\n');
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith('data: ')) continue;
      const data = line.slice(6);
      if (data === '[DONE]') return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      take(event);
    }
  }
}
