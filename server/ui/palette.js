// The colour of each class: those of server/vision/palette.py, which says where they come from; a test compares the two.

const BASE_RGB = [
  [0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167],
  [230, 159, 0], [86, 180, 233], [120, 60, 160], [240, 228, 66],
];
const GOLDEN_ANGLE_DEGREES = 137.508;
const SATURATIONS = [0.9, 0.5];
const LIGHTNESSES = [0.28, 0.58, 0.75];

/** Red, green and blue of a class, 0 to 255 each. */
export function classRgb(classId) {
  if (classId < BASE_RGB.length) return BASE_RGB[classId];
  const k = classId - BASE_RGB.length;
  return rgbOfHsl((k * GOLDEN_ANGLE_DEGREES) % 360, SATURATIONS[k % SATURATIONS.length], LIGHTNESSES[k % LIGHTNESSES.length]);
}

/** The same for CSS and canvas. */
export function classColour(classId) {
  return `rgb(${classRgb(classId).join(" ")})`;
}

/** Black or white, whichever has more contrast on the class' colour (WCAG 2.2). */
export function textColour(classId) {
  const [r, g, b] = classRgb(classId).map((channel) => {
    const value = channel / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

function rgbOfHsl(hue, saturation, lightness) {
  const chroma = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (lightness - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}
