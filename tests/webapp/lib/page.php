<?php
// The pages as people see them. Everything that is not written here goes through text().
declare(strict_types=1);

// What a redirect may say: a code in the address, never free text, so that a link cannot put words here.
const NOTICES = [
    'user-added' => ['good', 'The user was added.'],
    'uploaded' => ['good', 'Stored on this node and on the standby.'],
    'uploaded-alone' => ['warn', 'Stored, but on this node only: no standby has confirmed it.'],
    'renamed' => ['good', 'The file was renamed.'],
    'deleted' => ['good', 'The file was deleted.'],
    'logged-in' => ['good', 'You are logged in.'],
    'logged-out' => ['good', 'You are logged out.'],
];

function text(string|int|null $value): string
{
    return htmlspecialchars((string) $value, ENT_QUOTES | ENT_SUBSTITUTE | ENT_HTML5, 'UTF-8');
}

function size_text(int $bytes): string
{
    foreach ([['GiB', 1 << 30], ['MiB', 1 << 20], ['KiB', 1 << 10]] as [$unit, $factor]) {
        if ($bytes >= $factor) {
            $value = $bytes / $factor;
            return ($value < 10 && fmod($value, 1) >= 0.05 ? number_format($value, 1) : number_format(floor($value))) . " $unit";
        }
    }
    return $bytes === 1 ? '1 byte' : "$bytes bytes";
}

/** The database's time (always UTC here) for programs. */
function utc_text(string $at): string
{
    return str_replace(' ', 'T', $at) . 'Z';
}

function time_html(string $at): string
{
    return '<time datetime="' . text(utc_text($at)) . '">' . text(substr($at, 0, 19)) . ' UTC</time>';
}

function notice_html(string $tone, string $sentence): string
{
    return '<p class="notice ' . $tone . '" role="' . ($tone === 'bad' ? 'alert' : 'status') . '">' . text($sentence) . "</p>\n";
}

function flash_html(): string
{
    $code = $_GET['done'] ?? null;
    [$tone, $sentence] = is_string($code) ? (NOTICES[$code] ?? [null, null]) : [null, null];
    return $tone === null ? '' : notice_html($tone, $sentence);
}

function csrf_field(): string
{
    return '<input type="hidden" name="csrf" value="' . text(form_token()) . '">';
}

function strip_html(array $status): string
{
    $items = '';
    foreach ($status['items'] as $item) {
        $items .= '<div class="fact ' . $item['tone'] . '" data-fact="' . $item['key'] . '"><dt>' . text($item['label'])
            . '</dt><dd>' . text($item['text']) . '</dd></div>';
    }
    $refusal = '<p id="refusal" class="notice warn"' . ($status['refusal'] === null ? ' hidden' : '') . '>' . text($status['refusal']) . '</p>';
    // The changes that matter are spoken by the hidden line; the facts themselves change too often for that.
    return '<section id="strip" class="strip" aria-label="State of the cluster"><dl>' . $items . '</dl>'
        . '<p id="strip-trouble" class="trouble" hidden></p>'
        . '<p id="strip-spoken" class="unseen" role="status" aria-live="polite"></p></section>' . $refusal;
}

/** Sends a whole page. $here is the page's name in the navigation. */
function show_page(int $status, string $title, string $here, string $body, ?array $account): never
{
    $nav = '';
    foreach (['users' => 'Users', 'files' => 'Files'] as $page => $label) {
        $nav .= '<a href="' . $page . '.php"' . ($page === $here ? ' aria-current="page"' : '') . ">$label</a>";
    }
    $strip = strip_html(cluster_status());
    $person = person_html($account, $here);
    http_response_code($status);
    header('Content-Type: text/html; charset=utf-8');
    echo '<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>', text($title), ' · HA test application</title>
<link rel="icon" href="icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="style.css">
<script src="app.js" defer></script>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><div class="wide">
<span class="brand"><img src="icon.svg" alt="" width="22" height="22"> HA test application</span>
<nav aria-label="Pages">', $nav, '</nav>
', $person, '
</div></header>
<div class="wide">
', $strip, '
<main id="main" tabindex="-1">
', $body, '
</main>
</div>
</body>
</html>
';
    exit;
}

function person_html(?array $account, string $here): string
{
    if (!logins_are_on()) {
        return '<p class="person"><span class="who">Logins are off</span></p>';
    }
    if ($account === null) {
        return $here === 'login' ? '' : '<p class="person"><a href="login.php">Log in</a></p>';
    }
    return '<form class="person" method="post" action="login.php"><span class="who">' . text($account['name']) . ' <small>'
        . text($account['role']) . '</small></span>' . csrf_field()
        . '<button name="action" value="logout" class="quiet">Log out</button></form>';
}

function show_refusal_page(Refusal $refusal): never
{
    $titles = [401 => 'Log in', 403 => 'Not allowed', 404 => 'Not found', 413 => 'Too large', 415 => 'Type not accepted', 503 => 'Not now', 500 => 'Error'];
    $title = $titles[$refusal->status] ?? 'Not done';
    $page = basename($_SERVER['SCRIPT_NAME'] ?? '', '.php');
    $page = in_array($page, ['users', 'files', 'login'], true) ? $page : ($page === 'download' ? 'files' : 'users');
    $body = '<h1>' . $title . '</h1>' . notice_html('bad', $refusal->getMessage()) . '<p class="actions">'
        . ($refusal->status === 401 ? '<a class="button" href="login.php">Log in</a>' : "<a class=\"button\" href=\"$page.php\">Back</a>") . '</p>';
    show_page($refusal->status, $title, $page, $body, account_or_null());
}

/** For error pages: without a database there is nobody. */
function account_or_null(): ?array
{
    try {
        return current_account();
    } catch (Throwable) {
        return null;
    }
}

function pager_html(string $page, ?int $before, ?int $next): string
{
    $links = ($before !== null ? "<a class=\"button quiet\" href=\"$page.php\">Newest</a>" : '')
        . ($next !== null ? "<a class=\"button quiet\" rel=\"next\" href=\"$page.php?before=$next\">Older</a>" : '');
    return $links === '' ? '' : "<nav class=\"pager\" aria-label=\"Older and newer\">$links</nav>";
}

/** A table whose rows become cards on a phone; the roles keep it a table for screen readers there too. */
function table_html(string $caption, array $heads, array $rows): string
{
    $html = '<table role="table"><caption class="unseen">' . text($caption) . '</caption><thead role="rowgroup"><tr role="row">';
    foreach ($heads as $head) {
        $html .= '<th role="columnheader" scope="col">' . ($head === 'Actions' ? '<span class="unseen">Actions</span>' : text($head)) . '</th>';
    }
    $html .= "</tr></thead><tbody role=\"rowgroup\">\n";
    foreach ($rows as $cells) {
        $html .= '<tr role="row">';
        foreach ($cells as $index => $cell) {
            $html .= '<td role="cell" data-label="' . text($heads[$index]) . '"' . ($heads[$index] === 'Actions' ? ' class="row-actions"' : '') . '><div>' . $cell . '</div></td>';
        }
        $html .= "</tr>\n";
    }
    return $html . '</tbody></table>';
}

function show_users(array $account, array $rows, ?int $before, ?int $next): never
{
    $add = $account['role'] === 'editor'
        ? '<form method="post" action="users.php">' . csrf_field() . '<button name="action" value="add" class="primary">Add random user</button></form>'
        : '';
    $cells = array_map(fn ($row) => [
        '<strong>' . text($row['name']) . '</strong>',
        '<code>' . text($row['uid']) . '</code>',
        time_html($row['created_at']),
    ], $rows);
    $body = '<div class="head"><h1>Users</h1>' . $add . '</div>' . flash_html()
        . ($rows === [] ? '<p class="empty">No users yet.</p>' : table_html('Users, newest first', ['Name', 'ID', 'Added'], $cells))
        . pager_html('users', $before, $next);
    show_page(200, 'Users', 'users', $body, $account);
}

function show_files(array $account, array $rows, ?int $before, ?int $next): never
{
    $editor = $account['role'] === 'editor';
    $cells = array_map(fn ($row) => file_cells($row, $editor), $rows);
    $heads = ['Name', 'Size', 'Added', 'Owner', ...($editor ? ['Actions'] : [])];
    $body = '<div class="head"><h1>Files</h1></div>' . flash_html() . ($editor ? upload_form_html() : '')
        . ($rows === [] ? '<p class="empty">No files yet.</p>' : table_html('Files, newest first', $heads, $cells))
        . pager_html('files', $before, $next) . ($editor ? delete_dialog_html() : '');
    show_page(200, 'Files', 'files', $body, $account);
}

function file_cells(array $row, bool $editor): array
{
    $id = (int) $row['id'];
    // bdi: a name with letters that run from right to left must not turn the rest of the line around.
    $name = '<bdi>' . text($row['name']) . '</bdi>';
    $here = file_is_here($row);
    $name = $here ? "<a class=\"name\" href=\"download.php?id=$id\">$name</a>" : "<span class=\"name\">$name</span>";
    if (!$here) {
        $name .= ' <span class="badge bad">file missing on this node</span>';
    }
    if ($row['stored'] === 'alone') {
        $name .= ' <span class="badge warn" title="' . text($row['alone_reason']) . '">stored on one node only</span>';
    }
    $cells = [$name, text(size_text((int) $row['size'])), time_html($row['created_at']), text($row['owner'])];
    if ($editor) {
        $of = '<span class="unseen"> ' . text($row['name']) . '</span>';
        $cells[] = "<a class=\"button quiet\" href=\"files.php?rename=$id\">Rename$of</a> "
            . "<a class=\"button quiet danger\" href=\"files.php?delete=$id\" data-delete=\"$id\" data-name=\"" . text($row['name']) . "\">Delete$of</a>";
    }
    return $cells;
}

function upload_form_html(): string
{
    $allowed = config_list('files.allowed_types');
    $limit = config_number('files.max_bytes');
    $most = (int) ini_get('max_file_uploads');
    $accept = $allowed === ['*'] ? '' : ' accept="' . text(implode(',', array_map(fn ($type) => ".$type", $allowed))) . '"';
    return '<form id="upload" class="card" method="post" action="files.php" enctype="multipart/form-data"'
        . " data-max-bytes=\"$limit\" data-max-files=\"$most\">" . csrf_field()
        . '<input type="hidden" name="action" value="upload">'
        . '<label for="choose">Upload files</label>'
        . '<div class="line"><input id="choose" type="file" name="files[]" multiple required aria-describedby="upload-hint"' . $accept . '>'
        . '<button class="primary">Upload</button></div>'
        . '<p id="upload-hint" class="hint">Up to ' . text(size_text($limit)) . " each, $most at a time."
        . ($allowed === ['*'] ? '' : ' Types: ' . text(implode(', ', $allowed)) . '.') . '</p>'
        . '<div id="upload-progress" class="line" hidden><progress max="100" value="0" aria-label="Upload progress"></progress>'
        . '<output></output><button type="button" class="quiet">Cancel</button></div>'
        . '<div id="upload-outcome" role="alert"></div></form>';
}

/** Shown by the script instead of the confirmation page. */
function delete_dialog_html(): string
{
    return '<dialog id="delete-dialog" aria-labelledby="delete-title"><form method="post" action="files.php">' . csrf_field()
        . '<h2 id="delete-title">Delete this file?</h2><p><bdi class="name"></bdi> will be deleted on every node.</p>'
        . '<input type="hidden" name="id" value=""><p class="actions"><button name="action" value="delete" class="danger">Delete</button> '
        . '<button type="button" class="quiet" data-close>Cancel</button></p></form></dialog>';
}

function show_delete(array $account, array $row): never
{
    $body = '<h1>Delete this file?</h1><form class="card" method="post" action="files.php">' . csrf_field()
        . '<p><bdi class="name">' . text($row['name']) . '</bdi> (' . text(size_text((int) $row['size'])) . ') will be deleted on every node.</p>'
        . '<input type="hidden" name="id" value="' . (int) $row['id'] . '">'
        . '<p class="actions"><button name="action" value="delete" class="danger">Delete</button> <a class="button quiet" href="files.php">Cancel</a></p></form>';
    show_page(200, 'Delete a file', 'files', $body, $account);
}

function show_rename(array $account, array $row): never
{
    $body = '<h1>Rename</h1><form class="card" method="post" action="files.php">' . csrf_field()
        . '<input type="hidden" name="id" value="' . (int) $row['id'] . '"><label for="name">New name</label>'
        . '<div class="line"><input id="name" name="name" required maxlength="255" autocomplete="off" value="' . text($row['name']) . '">'
        . '<button name="action" value="rename" class="primary">Rename</button> <a class="button quiet" href="files.php">Cancel</a></div></form>';
    show_page(200, 'Rename a file', 'files', $body, $account);
}

/** A batch of which something failed: a page with each outcome, since a redirect cannot carry them. */
function show_outcomes(array $account, array $outcomes): never
{
    $rows = array_map(fn ($outcome) => [
        '<bdi class="name">' . text($outcome['name']) . '</bdi>',
        $outcome['ok']
            ? '<span class="badge ' . ($outcome['stored'] === 'stored' ? 'good">stored' : 'warn">stored on one node only') . '</span>'
            : '<span class="badge bad">' . ($outcome['code'] === 'unknown' ? 'not known' : 'not stored') . '</span> ' . text($outcome['error']),
    ], $outcomes);
    if (in_array(503, array_column($outcomes, 'status'), true)) {
        header('Retry-After: 2');
    }
    $body = '<h1>Upload</h1>' . notice_html('bad', count($outcomes) === 1 ? 'The file was not stored.' : 'Not every file was stored.')
        . table_html('Each file of the upload', ['Name', 'Outcome'], $rows) . '<p class="actions"><a class="button" href="files.php">Back to the files</a></p>';
    show_page(batch_status($outcomes), 'Upload', 'files', $body, $account);
}

function show_login(int $status, ?string $trouble, string $name, string $next): never
{
    $body = '<div class="narrow"><h1>Log in</h1>' . flash_html() . ($trouble === null ? '' : notice_html('bad', $trouble))
        . '<form class="card" method="post" action="login.php">' . csrf_field() . '<input type="hidden" name="next" value="' . text($next) . '">'
        . '<label for="name">Name</label><input id="name" name="name" required maxlength="64" autocomplete="username" autocapitalize="none" spellcheck="false" value="' . text($name) . '">'
        . '<label for="password">Password</label><input id="password" type="password" name="password" required maxlength="200" autocomplete="current-password">'
        . '<p class="actions"><button name="action" value="login" class="primary">Log in</button></p></form></div>';
    show_page($status, 'Log in', 'login', $body, null);
}
