<?php
// The list of users, and adding one.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

run(function () {
    require_method('GET', 'POST');
    if (request_method() === 'POST') {
        require_editor();
        if (posted('action') !== 'add') {
            throw new Refusal(422, 'fields', 'The form is not one of this page.');
        }
        answer_done(add_random_user(), 'users.php?done=user-added');
    }
    $account = require_reader('users');
    $before = positive($_GET['before'] ?? null);
    [$rows, $next] = newest_first('users', 'id, uid, name, created_at', $before);
    if (wants_json()) {
        send_json(200, [
            'ok' => true,
            'csrf' => form_token(),
            'account' => ['name' => $account['name'], 'role' => $account['role']],
            'users' => array_map(user_for_json(...), $rows),
            'next' => $next,
        ]);
    }
    show_users($account, $rows, $before, $next);
});
