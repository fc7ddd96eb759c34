// The conversation: one column for each model, all asked the same.
const chat = { models: [], columns: [], picture: null, busy: null };

const number = (id) => (element(id).value === '' ? undefined : Number(element(id).value));

// What a question asks for beside the messages; what is empty is left to the server.
function settings() {
  const asked = {
    temperature: number('temperature'), top_p: number('top-p'), max_tokens: number('most'), seed: number('seed'),
    frequency_penalty: number('penalty'),
  };
  return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== undefined));
}

function column(model) {
  const turns = make('ol', { className: 'turns' });
  turns.setAttribute('aria-live', 'polite');
  turns.setAttribute('aria-label', `Conversation with ${model.id}`);
  turns.tabIndex = 0;
  const node = make('div', { className: 'column' }, make('h2', { textContent: model.id }), turns);
  // `shown` is the picture that the conversation has already.
  return { model, turns, node, messages: [], shown: null, round: 0 };
}

function turn(column, role, text, picture) {
  const node = make('li', { className: `turn ${role}` });
  if (picture) node.append(make('img', { src: picture.url, alt: 'the picture that was asked about' }));
  const words = make('span', { textContent: text });
  node.append(words);
  column.turns.append(node);
  column.turns.scrollTop = column.turns.scrollHeight;
  return { node, words };
}

// Asks one model, and writes its answer as it comes.
async function ask(column, question, signal) {
  const { round } = column;
  const picture = chat.picture !== column.shown ? chat.picture : null;
  turn(column, 'user', question, picture);
  const answer = turn(column, 'assistant', '');
  answer.node.classList.add('busy');
  const text = { type: 'text', text: question };
  const content = picture ? [{ type: 'image_url', image_url: { url: picture.url } }, text] : question;
  const messages = [...column.messages, { role: 'user', content }];
  const system = element('system').value.trim();
  const body = {
    model: column.model.id, stream: true, stream_options: { include_usage: true }, ...settings(),
    messages: system ? [{ role: 'system', content: system }, ...messages] : messages,
  };
  let said = '';
  let note = '';
  try {
    await postStream('v1/chat/completions', body, signal, (event) => {
      const choice = event.choices[0];
      said += choice?.delta.content ?? '';
      if (choice?.finish_reason === 'length') note = 'cut at the most tokens; ';
      if (event.usage) note += `${event.usage.completion_tokens} tokens`;
      const atEnd = column.turns.scrollHeight - column.turns.scrollTop - column.turns.clientHeight < 40;
      answer.words.textContent = said;
      if (atEnd) column.turns.scrollTop = column.turns.scrollHeight;
    });
  } catch (error) {
    if (error.name === 'AbortError') {
      note = 'stopped';
    } else {
      const wrong = make('span', { className: 'wrong', textContent: error.message });
      wrong.setAttribute('role', 'alert');
      answer.node.append(wrong);
    }
  }
  answer.node.classList.remove('busy');
  if (note) answer.node.append(make('small', { textContent: note }));
  // A question whose answer is blank is forgotten, as in `basic chat`.
  if (said.trim() && column.round === round) {
    column.messages = [...messages, { role: 'assistant', content: said.trim() }];
    if (picture) column.shown = picture;
  }
}

async function send() {
  const question = element('question').value.trim();
  if (chat.busy || !question || chat.columns.length === 0) return;
  chat.busy = new AbortController();
  working(true);
  element('question').value = '';
  await Promise.all(chat.columns.map((column) => ask(column, question, chat.busy.signal)));
  chat.busy = null;
  working(false);
  element('question').focus();
}

function working(busy) {
  element('send').disabled = busy;
  element('stop').disabled = !busy;
}

function renew() {
  chat.busy?.abort();
  for (const column of chat.columns) {
    Object.assign(column, { messages: [], shown: null, round: column.round + 1 });
    column.turns.replaceChildren();
  }
  element('question').focus();
}

// Takes a picture that was chosen, dropped or pasted.
function take(file) {
  if (!file || !file.type.startsWith('image/')) {
    element('look-status').textContent = file ? `${file.name || 'This'} is no picture.` : '';
    return;
  }
  const reader = new FileReader();
  reader.addEventListener('error', () => { element('look-status').textContent = `${file.name} cannot be read.`; });
  reader.addEventListener('load', () => {
    chat.picture = { url: reader.result, name: file.name || 'a pasted picture' };
    element('given').hidden = false;
    element('given-name').textContent = chat.picture.name;
    lookAt(chat.picture, chat.models);
  });
  reader.readAsDataURL(file);
}

function remove() {
  chat.picture = null;
  element('given').hidden = true;
  element('file').value = '';
  forgetLens();
}

async function begin() {
  try {
    chat.models = (await getJson('v1/models')).data;
  } catch (error) {
    element('models').textContent = error.message;
    return;
  }
  element('models').textContent = chat.models.map((model) => model.id).join(' and ');
  document.title = `Chat with ${element('models').textContent}`;
  chat.columns = chat.models.map(column);
  element('columns').replaceChildren(...chat.columns.map((column) => column.node));
  if (chat.picture) lookAt(chat.picture, chat.models);
}

element('ask').addEventListener('submit', (event) => { event.preventDefault(); send(); });
element('question').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
element('stop').addEventListener('click', () => chat.busy?.abort());
element('renew').addEventListener('click', renew);
element('remove').addEventListener('click', remove);
element('file').addEventListener('change', (event) => take(event.target.files[0]));
element('key').addEventListener('change', () => { if (chat.columns.length === 0) begin(); });
document.addEventListener('paste', (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith('image/'));
  if (file) { event.preventDefault(); take(file); }
});
// A picture that misses the frame must not replace the page.
for (const kind of ['dragover', 'drop']) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener('dragover', () => element('drop').classList.add('over'));
document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) element('drop').classList.remove('over'); });
document.addEventListener('drop', (event) => {
  element('drop').classList.remove('over');
  take(event.dataTransfer.files[0]);
});
begin();
