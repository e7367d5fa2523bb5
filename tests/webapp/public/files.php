<?php
// The list of files: upload, rename, delete.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

function change_files(): never
{
    $account = require_editor();
    $id = positive(posted('id'));
    switch (posted('action')) {
        case 'upload':
            $outcomes = store_uploads(received_files(), $account['name']);
            if (wants_json()) {
                send_batch_json($outcomes);
            }
            if (batch_status($outcomes) !== 200) {
                show_outcomes($account, $outcomes);
            }
            $alone = in_array('alone', array_column($outcomes, 'stored'), true);
            redirect('files.php?done=' . ($alone ? 'uploaded-alone' : 'uploaded'));
            // redirect ends the request
        case 'rename':
            rename_file($id, posted('name') ?? '');
            answer_done(['id' => $id], 'files.php?done=renamed');
            // answer_done ends the request
        case 'delete':
            delete_file($id);
            answer_done(['id' => $id], 'files.php?done=deleted');
            // answer_done ends the request
        default:
            throw new Refusal(422, 'fields', 'The form is not one of this page.');
    }
}

function read_files(): never
{
    $account = require_reader('files');
    if ($account['role'] === 'editor' && isset($_GET['rename'])) {
        show_rename($account, find_file(positive($_GET['rename'])));
    }
    if ($account['role'] === 'editor' && isset($_GET['delete'])) {
        show_delete($account, find_file(positive($_GET['delete'])));
    }
    $before = positive($_GET['before'] ?? null);
    [$rows, $next] = newest_first('files', FILE_COLUMNS, $before);
    if (wants_json()) {
        send_json(200, [
            'ok' => true,
            'csrf' => form_token(),
            'account' => ['name' => $account['name'], 'role' => $account['role']],
            'files' => array_map(file_for_json(...), $rows),
            'next' => $next,
        ]);
    }
    show_files($account, $rows, $before, $next);
}

run(function () {
    require_method('GET', 'POST');
    request_method() === 'POST' ? change_files() : read_files();
});
