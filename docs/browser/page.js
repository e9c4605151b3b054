// The page "Try a ticket in your browser": a canvas to draw on, a file picker, and what the tickets say.
const element = id => document.getElementById(id);
const status = element('ticket-status');

function bars(id, classes, shares) {
  const order = classes.map((_, i) => i).sort((a, b) => shares[b] - shares[a]).slice(0, 3);
  element(id).replaceChildren(...order.map(i => {
    const row = document.createElement('div');
    row.className = 'ticket-bar';
    row.style.setProperty('--share', `${(100 * shares[i]).toFixed(0)}%`);
    row.textContent = `${classes[i]}: ${(100 * shares[i]).toFixed(0)} %`;
    return row;
  }));
}

function kilobytes(bytes) {
  return `${Math.round(bytes / 1000).toLocaleString('en')} KB`;
}

async function compared(ticket, known, model, inputs) {
  const float32 = await ticket.load(known.float32.name);
  const [own, other] = [model, float32].map(one => () => ticket.milliseconds(one, inputs, known.shape));
  const [a, b] = [await own(), await other()];
  const row = element('ticket-sizes').insertRow();
  const cells = [known.name ?? 'digits', kilobytes(known.ticket), `${kilobytes(known.file.bytes)} (${kilobytes(known.file.gzip)} zipped)`,
    `${a.toFixed(2)} ms`, kilobytes(known.float32.bytes), `${b.toFixed(2)} ms`];
  for (const cell of cells) row.insertCell().textContent = cell;
}

function drawing(canvas, changed) {
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const at = event => [event.offsetX * canvas.width / canvas.clientWidth, event.offsetY * canvas.height / canvas.clientHeight];
  let last = null;
  canvas.onpointerdown = event => {
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
  };
  canvas.onpointermove = event => {
    if (!last) return;
    const next = at(event);
    Object.assign(context, {lineWidth: canvas.width / 9, lineCap: 'round'});
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...next);
    context.stroke();
    last = next;
    changed();
  };
  canvas.onpointerup = canvas.onpointercancel = () => { last = null; };
  element('ticket-clear').onclick = () => {
    context.clearRect(0, 0, canvas.width, canvas.height);
    changed();
  };
}

async function start() {
  const ticket = await import('./ticket.js');
  const known = await ticket.about();
  const models = {digits: await ticket.load(known.digits.file.name), pictures: await ticket.load(known.pictures.file.name)};

  const paper = element('ticket-paper');
  const read = async () => {
    const values = await ticket.logits(models.digits, ticket.digit(paper), known.digits.shape);
    bars('ticket-digit', known.digits.classes, ticket.softmax(values));
  };
  drawing(paper, read);

  const canvas = element('ticket-picture');
  const show = async image => {
    const [width, height] = [image.naturalWidth ?? image.width, image.naturalHeight ?? image.height];
    const side = Math.min(width, height);
    const context = canvas.getContext('2d', {willReadFrequently: true});
    context.imageSmoothingQuality = 'high';
    context.drawImage(image, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
    const values = await ticket.logits(models.pictures, ticket.normalized(canvas, known.pictures), known.pictures.shape);
    bars('ticket-class', known.pictures.classes, ticket.softmax(values));
  };
  element('ticket-file').onchange = async event => show(await createImageBitmap(event.target.files[0]));
  for (const image of document.querySelectorAll('.ticket-sample')) {
    image.onclick = () => show(image);
  }
  await show(document.querySelector('.ticket-sample'));
  status.textContent = 'Loaded. Nothing you draw or choose leaves this page.';
  await compared(ticket, known.digits, models.digits, ticket.digit(paper));
  await compared(ticket, known.pictures, models.pictures, ticket.normalized(canvas, known.pictures));
  document.body.dataset.ticket = 'ready';
}

start().catch(error => {
  const file = location.protocol === 'file:';
  status.textContent = file
    ? 'Browsers load no programs from files: serve the site, for example with "python -m http.server -d site".'
    : `This page could not load its network (${error.message}). Was the site built with npm?`;
});
