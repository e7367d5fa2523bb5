<?php
// For the load generator: POST writer and n, acknowledged after COMMIT. Machines only, by their address.
declare(strict_types=1);

require (getenv('HA_APP_LIB') ?: '/usr/local/share/ha-app') . '/app.php';

run(function () {
    $_SERVER['HTTP_ACCEPT'] = 'application/json';
    require_method('POST');
    // A browser names the page that it comes from; a machine does not. So no page can use a machine's right.
    if (!in_array($_SERVER['REMOTE_ADDR'] ?? '', config_list('machine.clients'), true) || isset($_SERVER['HTTP_ORIGIN'])) {
        throw new Refusal(403, 'address', 'This address is not for you.');
    }
    require_may_write();
    require_whole_body();
    $writer = filter_var(posted('writer') ?? '', FILTER_VALIDATE_INT, ['options' => ['min_range' => -2147483648, 'max_range' => 2147483647]]);
    $number = filter_var(posted('n') ?? '', FILTER_VALIDATE_INT);
    if ($writer === false || $number === false) {
        throw new Refusal(422, 'fields', 'writer and n must be whole numbers.');
    }
    send_json(200, ['ok' => true] + add_number($writer, $number));
});
