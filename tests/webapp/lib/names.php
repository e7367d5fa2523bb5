<?php
// Names for random users.
declare(strict_types=1);

const FIRST_NAMES = [
    'Ada', 'Aisha', 'Akira', 'Alma', 'Amara', 'Anton', 'Beatriz', 'Björn', 'Carmen', 'Chidi', 'Daria', 'Diego', 'Elif', 'Emil',
    'Farah', 'Femi', 'Greta', 'Hana', 'Hugo', 'Ida', 'Ines', 'Ivan', 'Jamal', 'Jelena', 'Jun', 'Kaya', 'Kofi', 'Lara', 'Lena',
    'Luca', 'Maeve', 'Malik', 'Mei', 'Milan', 'Naomi', 'Nils', 'Noor', 'Olga', 'Omar', 'Paulo', 'Priya', 'Rosa', 'Sami', 'Sofia',
    'Søren', 'Tariq', 'Tomás', 'Uma', 'Viktor', 'Wanda', 'Yara', 'Yusuf', 'Zoë',
];

const LAST_NAMES = [
    'Abebe', 'Adeyemi', 'Andersen', 'Baker', 'Bauer', 'Bianchi', 'Castillo', 'Chen', 'Costa', 'Dubois', 'Eriksson', 'Fischer',
    'García', 'Haddad', 'Hansen', 'Hoffmann', 'Ito', 'Ivanova', 'Jansen', 'Kamau', 'Kaya', 'Kowalski', 'Kumar', 'Larsen', 'Li',
    'Lindqvist', 'Marino', 'Mensah', 'Moreau', 'Müller', 'Nakamura', 'Novák', 'O’Brien', 'Okafor', 'Oliveira', 'Park', 'Patel',
    'Petrov', 'Rahman', 'Rossi', 'Santos', 'Schmidt', 'Silva', 'Singh', 'Tanaka', 'Varga', 'Weber', 'Yılmaz', 'Zhang',
];
