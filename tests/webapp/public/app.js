// The pages work without this file. It refreshes the strip, shows the progress of an upload, and asks
// before a deletion without another page.
'use strict';

const REFRESH_MS = 2000;
const STATUS_TIMEOUT_MS = 3500;
// An upload that has not moved for this long has met a dead node.
const STALL_MS = 20000;

const byId = (id) => document.getElementById(id);

// The strip

const factText = (key) => document.querySelector(`[data-fact="${key}"] dd`).textContent;
const stateSentence = () => `${factText('node')} answers, role ${factText('role')}, database ${factText('database')}.`;
let spoken = '';

function showStatus(status) {
    for (const item of status.items) {
        const fact = document.querySelector(`[data-fact="${item.key}"]`);
        if (!fact) continue;
        fact.className = `fact ${item.tone}`;
        fact.lastElementChild.textContent = item.text;
    }
    const refusal = byId('refusal');
    refusal.textContent = status.refusal || '';
    refusal.hidden = !status.refusal;
    showTrouble('');
    speak(stateSentence());
}

function showTrouble(sentence) {
    byId('strip').classList.toggle('stale', sentence !== '');
    byId('strip-trouble').textContent = sentence;
    byId('strip-trouble').hidden = sentence === '';
    if (sentence) speak(sentence);
}

// Said only when it differs from what was said last, or from what the page came with.
function speak(sentence) {
    if (sentence !== spoken) byId('strip-spoken').textContent = sentence;
    spoken = sentence;
}

async function refreshStrip() {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), STATUS_TIMEOUT_MS);
    try {
        const answer = await fetch('status.php', { headers: { Accept: 'application/json' }, signal: abort.signal, cache: 'no-store' });
        if (!answer.ok) throw new Error('no status');
        showStatus(await answer.json());
    } catch {
        showTrouble('No answer, trying again.');
    } finally {
        clearTimeout(timer);
        setTimeout(refreshStrip, REFRESH_MS);
    }
}

// Uploads

function tell(sentence, lines = [], reload = false) {
    const box = byId('upload-outcome');
    const notice = document.createElement('div');
    notice.className = 'notice bad';
    notice.textContent = sentence;
    const list = document.createElement('ul');
    for (const line of lines) {
        const item = document.createElement('li');
        const name = document.createElement('bdi');
        name.textContent = line.name;
        item.append(name, `: ${line.text}`);
        list.append(item);
    }
    if (lines.length) notice.append(list);
    const again = document.createElement('a');
    again.href = 'files.php';
    again.textContent = 'Load the list again';
    if (reload) notice.append(document.createElement('br'), again);
    // What the page said before is about something else.
    document.querySelectorAll('main > .notice').forEach((old) => old.remove());
    box.replaceChildren(notice);
}

function outcomeText(file) {
    if (!file.ok) return file.error;
    return file.stored === 'stored' ? 'stored' : 'stored on one node only';
}

function uploadTrouble(form, files) {
    if (files.length > Number(form.dataset.maxFiles)) return `${form.dataset.maxFiles} files at a time at most.`;
    const large = [...files].filter((file) => file.size > Number(form.dataset.maxBytes));
    return large.length ? `Too large: ${large.map((file) => file.name).join(', ')}.` : '';
}

function upload(form) {
    const choose = byId('choose');
    const trouble = uploadTrouble(form, choose.files);
    if (trouble) {
        tell(trouble);
        return;
    }
    const row = byId('upload-progress');
    const [bar, output, cancel] = [row.querySelector('progress'), row.querySelector('output'), row.querySelector('button')];
    const send = form.querySelector('button.primary');
    const request = new XMLHttpRequest();
    let stalled, cancelled = false;
    const alive = () => {
        clearTimeout(stalled);
        stalled = setTimeout(() => request.abort(), STALL_MS);
    };
    const body = new FormData(form);
    byId('upload-outcome').replaceChildren();
    row.hidden = false;
    send.disabled = choose.disabled = true;
    bar.value = 0;
    output.textContent = '0 %';
    request.open('POST', 'files.php');
    request.setRequestHeader('Accept', 'application/json');
    request.responseType = 'json';
    request.upload.onprogress = (event) => {
        alive();
        if (!event.lengthComputable) return;
        bar.value = 100 * event.loaded / event.total;
        output.textContent = event.loaded === event.total ? 'Storing …' : `${Math.floor(bar.value)} %`;
    };
    request.onloadend = () => {
        clearTimeout(stalled);
        row.hidden = true;
        send.disabled = choose.disabled = false;
        showUploadEnd(request.response, cancelled);
    };
    cancel.onclick = () => {
        cancelled = true;
        request.abort();
    };
    alive();
    request.send(body);
}

function showUploadEnd(answer, cancelled) {
    if (!answer) {
        tell(cancelled
            ? 'Cancelled. A file that had arrived by then may have been stored.'
            : 'The connection was lost, so it is not known whether the files were stored. Look at the list before you try again.', [], true);
        return;
    }
    if (answer.ok) {
        const alone = answer.files.some((file) => file.stored === 'alone');
        location.assign(`files.php?done=${alone ? 'uploaded-alone' : 'uploaded'}`);
        return;
    }
    const lines = (answer.files || []).map((file) => ({ name: file.name, text: outcomeText(file) }));
    const some = lines.length > 1 && answer.files.some((file) => file.ok);
    tell(lines.length ? (some ? 'Not every file was stored.' : 'Not stored.') : answer.error, lines, some);
}

// Deletion

function askBeforeDeletion(dialog) {
    document.addEventListener('click', (event) => {
        const link = event.target.closest('a[data-delete]');
        if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        dialog.querySelector('.name').textContent = link.dataset.name;
        dialog.querySelector('input[name=id]').value = link.dataset.delete;
        dialog.showModal();
    });
    dialog.querySelector('[data-close]').addEventListener('click', () => dialog.close());
}

if (byId('strip')) {
    spoken = stateSentence();
    setTimeout(refreshStrip, REFRESH_MS);
}
if (byId('upload')) {
    byId('upload').addEventListener('submit', (event) => {
        event.preventDefault();
        upload(event.currentTarget);
    });
}
if (byId('delete-dialog') && 'showModal' in byId('delete-dialog')) askBeforeDeletion(byId('delete-dialog'));
